"""The truth about a sweep: an Optuna study in a journal file, one entry per trial.

Whatever Tune, MLflow or a killed process believe, a trial has ended when its entry here has. An entry is born
RUNNING with its whole configuration; its result is stored beside it first, and only then is it told to Optuna.
"""

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from prolu_tune.config.trial import TrialConfig
from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.search.space import SearchSpace
from prolu_tune.sweep.files import SweepFolder
from prolu_tune.sweep.journal import SweepJournal

Outcome = Literal["finished", "stopped", "diverged", "failed"]
ENDED: tuple[Outcome, ...] = ("finished", "stopped", "diverged", "failed")


class StopRule(Protocol):
    """Decides early stopping; all it knows was fixed when the trial was proposed, so a resume decides alike."""

    def decide(self, course: Sequence[tuple[float, float]]) -> "tuple[bool, float | None]":
        """Returns (whether to stop now, the L0 the trial is going to land at) for a course of (share done, L0)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A trial to run: its index in the sweep, and all that its result depends on."""

    index: int
    config: TrialConfig
    stop_rule: StopRule | None = None
    """Decides from the course of L0 whether to end the trial early. None: never."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial ended."""

    outcome: Outcome
    record: dict[str, float | None]
    """Metrics under the names of `interface.md`; what was not computed is missing."""
    message: str | None = None
    checkpoint: str | None = None
    """Folder of the trained SAE."""
    course: list[tuple[float, float]] | None = None
    """(share of training done, L0 on the training batches) over the trial."""
    predicted_l0: float | None = None
    """Where a stopped trial was going to land."""
    numerics: str | None = None
    """What changed in the numerics while it trained, by permission; None: nothing, the bits are an undisturbed run's."""
    notes: str | None = None
    """What a person should know besides, such as a firing window too short for the frequency that makes a latent dead."""


class Proposer(Protocol):
    """What asks for the next trial; reads the study, remembers nothing that the study does not give back."""

    def propose(self, study: Study) -> "Proposal | Literal['wait', 'done']":
        """Returns the next trial and enters it into the study; or 'wait' for a result, or 'done'."""
        ...

    def total(self, study: Study) -> int | None:
        """Returns how many trials the sweep has in all, where that is known."""
        ...

    def stop_rule(self, study: Study, number: int) -> StopRule | None:
        """Returns the rule of the study's entry `number`, the same at every call."""
        ...

    def metrics(self, study: Study) -> dict[str, float]:
        """Returns what the search itself can tell of the sweep, for the parent run."""
        ...


class GridProposer:
    """Proposes the trials of a grid in the space's order."""

    def __init__(self, space: SearchSpace) -> None:
        self._trials = space.trials()

    def propose(self, study: Study) -> "Proposal | Literal['wait', 'done']":
        """Returns the first trial that is not in the study yet."""
        index = next_index(study)
        if index >= len(self._trials):
            return "done"
        config = self._trials[index]
        enter_trial(study, index, config)
        return Proposal(index=index, config=config)

    def total(self, study: Study) -> int | None:
        """Returns the size of the grid."""
        return len(self._trials)

    def stop_rule(self, study: Study, number: int) -> StopRule | None:
        """Returns None: a grid trains every trial to its end."""
        return None

    def metrics(self, study: Study) -> dict[str, float]:
        """Returns nothing."""
        return {}


def enter_trial(study: Study, index: int, config: TrialConfig) -> None:
    """Adds a RUNNING entry with its configuration, in one record of the journal."""
    coefficient = config.training.l1_coefficient
    study.add_trial(
        create_trial(
            state=TrialState.RUNNING,
            params={"architecture": config.sae.architecture, "l1_coefficient": coefficient},
            distributions={
                "architecture": optuna.distributions.CategoricalDistribution([config.sae.architecture]),
                "l1_coefficient": optuna.distributions.FloatDistribution(coefficient, coefficient),
            },
            user_attrs={"index": index, "config": config.model_dump_json()},
        )
    )


def trial_entries(study: Study) -> dict[int, FrozenTrial]:
    """Returns the newest entry of every trial by its index in the sweep; a retried trial has several entries.

    Entries without a configuration are no trials: a search may waive one, and a crash may leave one unborn.
    """
    entries, places = _places(study)
    return {index: entries[places[index]] for index in sorted(places)}


def trial_entry(study: Study, index: int) -> FrozenTrial:
    """Returns the newest entry of a trial."""
    entries, places = _places(study)
    return entries[places[index]]


def next_index(study: Study) -> int:
    """Returns the index of the next new trial."""
    return len(_places(study)[1])


@dataclass
class _Known:
    """Where the trials of a study stand in its list of entries, as far as that list has been read."""

    seen: int = 0
    places: dict[int, int] = field(default_factory=dict)
    unborn: list[int] = field(default_factory=list)
    """Entries that had no configuration yet."""


_KNOWN: "WeakKeyDictionary[Study, _Known]" = WeakKeyDictionary()


def _places(study: Study) -> tuple[list[FrozenTrial], dict[int, int]]:
    """Returns all entries, and for each trial's index the place of its newest one.

    An entry keeps place, index and configuration for ever, so each is looked at once: looked at anew for every trial,
    2,000 trials cost 14 s of the driver's CPU instead of 6, growing with the square.
    """
    entries, known = study.get_trials(deepcopy=False), _KNOWN.setdefault(study, _Known())
    unborn, known.unborn = known.unborn, []
    for place in (*unborn, *range(known.seen, len(entries))):
        attributes = entries[place].user_attrs
        if "config" not in attributes:
            known.unborn.append(place)
            continue
        index = int(attributes["index"])
        known.places[index] = max(place, known.places.get(index, 0))
    known.seen = len(entries)
    return entries, known.places


class SweepStudy:
    """The study of one sweep, opened by its one driver."""

    def __init__(self, folder: SweepFolder, name: str, *, sampler: optuna.samplers.BaseSampler | None = None) -> None:
        """Opens or creates the study.

        Raises:
            SurroundingsError: if the journal is damaged before its last record, or cannot be written, or holds what no
                driver of ours wrote.
        """
        journal = SweepJournal(folder.journal_file)
        self.torn_bytes = journal.torn_bytes
        optuna.logging.set_verbosity(logging.ERROR)
        try:
            storage = optuna.storages.JournalStorage(journal)
            self._study = optuna.create_study(study_name=name, storage=storage, sampler=sampler, load_if_exists=True)
            self.configs(), self.results()
            self._finish_half_told()
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            # Optuna replays records without checking them; whole checksums around nonsense are no crash's work.
            if isinstance(error, InputError):
                raise
            reason = str(error).partition("\n")[0][:100]
            raise SurroundingsError(
                f"{folder.journal_file} holds records that are no study of ours ({type(error).__name__}: {reason}); "
                "restore it from a backup, or start the sweep anew with --fresh"
            ) from error

    @property
    def optuna_study(self) -> Study:
        """The study itself, for samplers."""
        return self._study

    def entries(self) -> dict[int, FrozenTrial]:
        """Returns the newest entry of every trial, by index."""
        return trial_entries(self._study)

    def unfinished(self, proposer: Proposer) -> list[Proposal]:
        """Returns the trials that were proposed and have not ended, in index order."""
        return [
            Proposal(index=index, config=entry_config(entry), stop_rule=proposer.stop_rule(self._study, entry.number))
            for index, entry in self.entries().items()
            if not entry.state.is_finished()
        ]

    def results(self) -> dict[int, TrialResult]:
        """Returns the results of the trials that ended, by index."""
        return {i: stored_result(entry) for i, entry in self.entries().items() if "result" in entry.user_attrs}

    def configs(self) -> dict[int, TrialConfig]:
        """Returns every trial's configuration, by index."""
        return {i: entry_config(entry) for i, entry in self.entries().items()}

    def finish(self, index: int, result: TrialResult) -> bool:
        """Stores how a trial ended; returns False if it already had a result, which then stays."""
        entry = trial_entry(self._study, index)
        if "result" in entry.user_attrs:
            return False
        try:
            self._set(entry, "result", json.dumps(_plain(result)))
            self._tell(entry, result)
        except OSError as error:
            raise SurroundingsError(f"the study's journal cannot be written ({error}); run the same command again") from error
        return True

    def retry(self, outcomes: Iterable[Outcome]) -> list[int]:
        """Enters the trials with these outcomes anew, under their old index; returns the indices."""
        indices = [i for i, result in self.results().items() if result.outcome in set(outcomes)]
        for index in indices:
            enter_trial(self._study, index, entry_config(trial_entry(self._study, index)))
        return indices

    def _finish_half_told(self) -> None:
        for entry in self.entries().values():
            if not entry.state.is_finished() and "result" in entry.user_attrs:
                self._tell(entry, stored_result(entry))

    def _set(self, entry: FrozenTrial, key: str, value: Any) -> None:
        self._study._storage.set_trial_user_attr(entry._trial_id, key, value)

    def _tell(self, entry: FrozenTrial, result: TrialResult) -> None:
        l0 = result.record.get("l0")
        self._set(entry, "outcome", result.outcome)
        self._set(entry, "l0", l0)
        if result.course is not None:
            self._set(entry, "course", result.course)
            self._set(entry, "fraction", result.course[-1][0] if result.course else 0.0)
            self._set(entry, "cost", result.course[-1][0] if result.course else 0.0)
            self._set(entry, "predicted_l0", result.predicted_l0)
        if result.outcome == "failed":
            self._study.tell(entry.number, state=TrialState.FAIL)
        else:
            self._study.tell(entry.number, l0 if l0 is not None and math.isfinite(l0) else math.inf)


def entry_config(entry: FrozenTrial) -> TrialConfig:
    """Returns the configuration an entry was born with."""
    return TrialConfig.model_validate_json(entry.user_attrs["config"])


def stored_result(entry: FrozenTrial) -> TrialResult:
    """Returns the result stored in an entry."""
    stored = json.loads(entry.user_attrs["result"])
    course = stored.pop("course")
    return TrialResult(**stored, course=None if course is None else [(float(f), float(l0)) for f, l0 in course])


def _plain(result: TrialResult) -> dict[str, Any]:
    return {
        "outcome": result.outcome,
        "record": {key: _finite_or_none(value) for key, value in result.record.items()},
        "message": result.message,
        "checkpoint": result.checkpoint,
        "course": result.course,
        "predicted_l0": result.predicted_l0,
        "numerics": result.numerics,
        "notes": result.notes,
    }


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
