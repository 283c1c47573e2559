"""What the search knows of a trial, read from an Optuna trial or made by a simulation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

OUTCOMES = ("finished", "stopped", "diverged", "failed")
WAIVED_KEY = "coverage:waived"
DECISION_FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the training at which a trial may be stopped early."""

Group = tuple[Any, ...]
"""An architecture, followed by the values of the other categorical parameters."""


Course = Sequence[Sequence[float]]
"""(share of training, L0 seen there) pairs, ascending."""


def milestones(course: Course) -> np.ndarray:
    """Log L0 at each decision fraction and at half of each, (2, 6), interpolated; NaN where the course does not reach."""
    points = np.array([DECISION_FRACTIONS, [fraction / 2 for fraction in DECISION_FRACTIONS]])
    if not course:
        return np.full(points.shape, np.nan)
    shares = np.array([share for share, _ in course])
    logs = np.log(np.maximum([l0 for _, l0 in course], 1e-3))
    seen = (points >= shares[0] - 1e-9) & (points <= shares[-1] + 1e-9)
    return np.where(seen, np.interp(points, shares, logs), np.nan)


@dataclass(frozen=True)
class TrialRecord:
    """One trial with an outcome, as the search sees it.

    Args:
        number: index of the trial in its study.
        group: architecture and the values of the other factors.
        log_coefficient: natural logarithm of `l1_coefficient`.
        outcome: `finished` (trained to the end), `stopped` (early), `diverged` (NaN) or `failed`.
        l0: final L0 of a finished trial (0 is a value like any other), else None.
        course: (share of training, L0 seen there) pairs, ascending.
        predicted_l0: where a stopped trial was going to land, as judged when it was stopped.
        fraction: share of the training that was done.
        cost: spent, in full trainings.
    """

    number: int
    group: Group
    log_coefficient: float
    outcome: str
    l0: float | None = None
    course: tuple[tuple[float, float], ...] = ()
    predicted_l0: float | None = None
    fraction: float = 1.0
    cost: float = 1.0

    @property
    def architecture(self) -> str:
        return str(self.group[0])

    @cached_property
    def milestones(self) -> np.ndarray:
        """Log L0 at the decision fractions, see `milestones`."""
        return milestones(self.course)


@dataclass(frozen=True)
class PendingTrial:
    """A trial whose result must not be read yet: it counts at its predicted landing."""

    number: int
    group: Group
    log_coefficient: float


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _course_of(trial: FrozenTrial) -> tuple[tuple[float, float], ...]:
    pairs: Sequence[Sequence[float]] = trial.user_attrs.get("course") or ()
    return tuple((float(share), float(l0)) for share, l0 in pairs if _is_number(l0) and l0 >= 0)


def record_of(trial: FrozenTrial, group: Group) -> TrialRecord:
    """The record of an Optuna trial that has ended.

    Without our user attributes (a plain objective that returns L0) a COMPLETE trial counts as
    finished at its value, a PRUNED one as stopped and a FAIL one as failed (Optuna turns a NaN
    objective into FAIL).
    """
    attrs: Mapping[str, Any] = trial.user_attrs
    default = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped"}.get(trial.state, "failed")
    outcome = attrs.get("outcome", default)
    if outcome not in OUTCOMES:
        outcome = "failed"
    l0: Any = attrs.get("l0", trial.values[0] if trial.values else None)
    if outcome == "finished" and (not _is_number(l0) or l0 < 0):
        outcome = "diverged"
    predicted = attrs.get("predicted_l0")
    fraction = attrs.get("fraction", 1.0)
    return TrialRecord(
        number=trial.number,
        group=group,
        log_coefficient=math.log(trial.params["l1_coefficient"]),
        outcome=outcome,
        l0=float(l0) if outcome == "finished" else None,
        course=_course_of(trial),
        predicted_l0=float(predicted) if predicted is not None and _is_number(predicted) else None,
        fraction=float(fraction) if _is_number(fraction) else 1.0,
        cost=float(attrs.get("cost", fraction) if _is_number(attrs.get("cost", fraction)) else 1.0),
    )
