"""Which trials a question is about: by architecture, L0, seed, and any field, metric or parameter."""

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prolu_tune.errors import InputError
from prolu_tune.results.records import FIELDS, METRICS, Record, finite

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class StoredTrial:
    """A trial as MLflow holds it: its record, and what else it measured and was configured with."""

    record: Record
    metrics: dict[str, float]
    """Latest value of every metric, NaN included; those with `train/` in front are of the training batches."""
    params: dict[str, str]
    """The flattened configuration."""
    tags: dict[str, str]
    label: str
    """Name of its MLflow run."""

    def value(self, key: str) -> float | str | bool | None:
        """Returns a field of the record, a metric or a parameter, whichever has this name; None for no value."""
        if key in self.record:
            return self.record[key]
        if key in self.metrics:
            return finite(self.metrics[key])
        text = self.params.get(key)
        number = finite(text)
        return text if number is None else number


@dataclass(frozen=True)
class Condition:
    """A comparison such as `training.lr=3e-4` or `mse<0.3`."""

    key: str
    sign: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Returns the parts of KEY, comparison, VALUE.

        Raises:
            InputError: if there is no comparison in it, or an order is asked of a word.
        """
        match = re.fullmatch(r"\s*([^\s<>=!]+)\s*(<=|>=|!=|==|=|<|>)\s*(.+?)\s*", text)
        if match is None:
            raise InputError(f"--where {text}: write KEY, one of = != < <= > >=, VALUE, such as 'mse<0.3' or training.lr=3e-4")
        key, sign, value = match.groups()
        if sign[0] in "<>" and finite(value) is None:
            raise InputError(f"--where {text}: {value!r} is not a number, so only = and != make sense")
        return cls(key, "=" if sign == "==" else sign, value)

    def holds(self, trial: StoredTrial) -> bool:
        """Returns whether the trial meets it; a trial without the value meets nothing but `!=`."""
        actual, wanted = trial.value(self.key), finite(self.value)
        if isinstance(actual, bool | str) or wanted is None:
            text = str(actual).lower() if isinstance(actual, bool) else str(actual)
            return (text == self.value) == (self.sign == "=")
        if actual is None:
            return self.sign == "!="
        return OPERATORS[self.sign](actual, wanted)


def select(
    trials: Sequence[StoredTrial],
    *,
    architectures: Sequence[str] = (),
    l0: tuple[float | None, float | None] | None = None,
    seeds: Sequence[int] = (),
    where: Sequence[str] = (),
) -> list[StoredTrial]:
    """Returns the trials that meet everything asked for.

    Args:
        trials: Of one sweep or of several.
        architectures: Any of these; none: all.
        l0: Lowest and highest final L0, both included; None for no limit.
        seeds: Any of these; none: all.
        where: Conditions on any field, metric or parameter.

    Raises:
        InputError: if an architecture or a key occurs in no trial, naming those that do.
    """
    conditions = [Condition.parse(text) for text in where]
    if trials:
        _check_known(architectures, {t.record["architecture"] for t in trials}, "architecture")
        _check_known([condition.key for condition in conditions], known_keys(trials), "field, metric or parameter")
    return [
        trial
        for trial in trials
        if (not architectures or trial.record["architecture"] in architectures)
        and (not seeds or trial.record["seed"] in seeds)
        and (l0 is None or _within(trial.record["l0"], *l0))
        and all(condition.holds(trial) for condition in conditions)
    ]


def check_axes(trials: Sequence[StoredTrial], *axes: str) -> None:
    """Returns nothing if every axis is a number that trials have.

    Raises:
        InputError: if one is not, naming those that are.
    """
    measured = {key for trial in trials for key in trial.metrics if not key.startswith("train/")}
    numeric = {key for trial in trials for key in trial.params if isinstance(trial.value(key), float)}
    known = {*METRICS, "l1_coefficient", "lr", "steps", "tokens", "wall_s"} | measured
    for axis in axes:
        if axis not in known | numeric:
            raise InputError(f"{axis} is not measured here; choose one of {', '.join(sorted(known))}{_hint(axis, known)}")


def known_keys(trials: Iterable[StoredTrial]) -> set[str]:
    """Returns every key that `StoredTrial.value` has an answer for."""
    return set(FIELDS).union(*({*trial.metrics, *trial.params} for trial in trials))


def parse_range(text: str) -> tuple[float | None, float | None]:
    """Returns (low, high) of `5:50`, `5:` or `:50`.

    Raises:
        InputError: if it is no range.
    """
    low, colon, high = text.partition(":")
    ends = [finite(end) if end.strip() else None for end in (low, high)]
    wrong = any(end.strip() and value is None for end, value in zip((low, high), ends, strict=True))
    if not colon or wrong or ends == [None, None]:
        raise InputError(f"--l0 {text}: write LOW:HIGH, such as 5:50, 5: or :50")
    if ends[0] is not None and ends[1] is not None and ends[0] > ends[1]:
        raise InputError(f"--l0 {text}: the lower end is above the upper one; write {high}:{low}")
    return ends[0], ends[1]


def _within(value: float | None, low: float | None, high: float | None) -> bool:
    return value is not None and (low is None or value >= low) and (high is None or value <= high)


def unknown_name(name: str, known: Iterable[str], what: str) -> InputError:
    """Returns the error for a name that is none of those known, with the nearest one."""
    shown = sorted(key for key in known if not str(key).startswith("train/"))
    return InputError(f"{name} is no {what}; there are {', '.join(shown)}{_hint(name, shown)}")


def _check_known(given: Sequence[str], known: set[str], what: str) -> None:
    for name in given:
        if name not in known:
            raise unknown_name(name, known, f"{what} of this sweep")


def _hint(name: str, known: Iterable[str]) -> str:
    lowered = {key.lower(): key for key in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1)
    return f"; did you mean {lowered[close[0]]}?" if close else ""
