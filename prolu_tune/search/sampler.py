"""An Optuna sampler that fills a range of L0, for every architecture, with as few trainings as it can.

How to drive it, from one process:

    study = optuna.create_study(sampler=sampler)
    while not sampler.is_done(study):
        if not sampler.ready(study):      # with `window`: an earlier trial has to end first
            wait for a trial to end
        trial = sampler.ask(study)        # params: architecture, the factors, l1_coefficient
        if sampler.is_waived(study, trial.number):
            sampler.tell_waived(study, trial)
            continue
        train it; at every report ask sampler.should_stop(study, trial.number, course)
        set the user attributes outcome, l0, course, fraction, cost; study.tell(...)

A trial is waived when all that it could fill is already going to be filled by trials whose results the window does
not let it read. It costs nothing; the next trial may read one result more.
"""

import itertools
import math
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from prolu_tune.search.coverage import Coverage, CoverageTarget, coverage_of
from prolu_tune.search.landscape import Decision, Landscape
from prolu_tune.search.planner import propose
from prolu_tune.search.records import WAIVED_KEY, Course, Group, PendingTrial, TrialRecord, record_of

DEFAULT_WINDOW = 8
_LANDSCAPES_KEPT = 32
ARCHITECTURE, COEFFICIENT = "architecture", "l1_coefficient"


def _running(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if not trial.state.is_finished()]


@dataclass
class _Cache:
    """What was read of a storage's ended trials, which do not change, and the newest landscapes."""

    records: dict[int, TrialRecord | None] = field(default_factory=dict)
    landscapes: OrderedDict[tuple[int, ...], Landscape] = field(default_factory=OrderedDict)


class L0CoverageSampler(BaseSampler):
    """Chooses architecture, other factors and `l1_coefficient` so that every group covers a range of L0.

    All it knows comes from the study's trials; what it keeps are caches. The suggestion for trial n is a pure function
    of the results of trials 0 .. n - window and of the parameters of the later ones, whatever the order in which
    trials end.

    Args:
        architectures: range of `l1_coefficient` of each architecture, however wide.
        l0: lowest and highest L0 wanted.
        bins: equal bins of log L0 that are to be filled in that range.
        max_trials: trials at most, those that were waived not counted; None: until every reachable bin is filled.
        window: how many of the latest trials are not read, counting the one asked for: as many as may run at once.
            None reads whatever has ended, so that suggestions depend on the order in which trials end. With a window
            ask only when `ready`; `study.optimize(n_jobs=...)` does not, so it wants None.
        factors: further categorical parameters, such as lr or seed; every combination is covered on its own.
        repeats: finished trials wanted in each bin beyond the first.
        seed: for parameters that are not ours, drawn at random.

    Raises:
        ValueError: if a range, the window or another argument makes no sense.
    """

    def __init__(
        self,
        architectures: Mapping[str, tuple[float, float]],
        *,
        l0: tuple[float, float],
        bins: int = 16,
        max_trials: int | None = None,
        window: int | None = DEFAULT_WINDOW,
        factors: Mapping[str, Sequence[Any]] | None = None,
        repeats: int = 0,
        seed: int = 0,
    ) -> None:
        if not architectures:
            raise ValueError("a coverage sweep needs at least one architecture with a range of l1_coefficient, got none")
        for name, (low, high) in architectures.items():
            if not (0 < low < high < math.inf):
                raise ValueError(
                    f"l1_coefficient of {name} needs 0 < low < high, got [{low}, {high}]; [1e-5, 1] is wide enough"
                )
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1 (every result is read) or None, got {window}")
        if max_trials is not None and max_trials < 1:
            raise ValueError(f"max_trials must be at least 1 or None, got {max_trials}")
        if repeats < 0:
            raise ValueError(f"repeats must be 0 or more, got {repeats}")
        self.target = CoverageTarget(float(l0[0]), float(l0[1]), bins)
        self.architectures = {name: (float(low), float(high)) for name, (low, high) in architectures.items()}
        self.factors = {name: tuple(values) for name, values in (factors or {}).items()}
        for name, values in self.factors.items():
            if not values or name in (ARCHITECTURE, COEFFICIENT):
                raise ValueError(f"factor {name!r} needs at least one value and a name of its own, got {list(values)}")
        self.max_trials = max_trials
        self.window = window
        self.repeats = repeats
        self.seed = seed
        self.spans: dict[Group, tuple[float, float]] = {
            (name, *values): (math.log(low), math.log(high))
            for name, (low, high) in self.architectures.items()
            for values in itertools.product(*self.factors.values())
        }
        self._caches: WeakKeyDictionary[BaseStorage, _Cache] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_caches"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._caches = WeakKeyDictionary()

    # -- the loop around the study

    @property
    def space(self) -> dict[str, BaseDistribution]:
        """The distributions of a trial: architecture, the factors, `l1_coefficient` over all ranges together."""
        lows, highs = zip(*self.architectures.values(), strict=True)
        return {
            ARCHITECTURE: CategoricalDistribution(list(self.architectures)),
            **{name: CategoricalDistribution(list(values)) for name, values in self.factors.items()},
            COEFFICIENT: FloatDistribution(min(lows), max(highs), log=True),
        }

    def ask(self, study: Study) -> Trial:
        """The next trial, its parameters set."""
        return study.ask(fixed_distributions=self.space)

    def ready(self, study: Study) -> bool:
        """Whether the next trial may be asked for: all results that it reads are there."""
        trials = study.get_trials(deepcopy=False)
        if self.window is None and trials and WAIVED_KEY in trials[-1].system_attrs:
            # Asking again before anything has ended would get the same answer.
            return len(_running(trials)) < trials[-1].system_attrs[WAIVED_KEY]
        return self._unread(trials, len(trials)) is None

    def is_done(self, study: Study) -> bool:
        """Whether the next trial would be one too many: every bin filled or unreachable, or `max_trials` reached."""
        trials = study.get_trials(deepcopy=False)
        if self.max_trials is not None and self.num_trials(study) >= self.max_trials:
            return True
        landscape, _ = self._view(study, trials, len(trials))
        return not any(len(landscape.open_bins(group)) for group in self.spans)

    def num_trials(self, study: Study) -> int:
        """Trials asked for, without those waived."""
        return sum(WAIVED_KEY not in trial.system_attrs for trial in study.get_trials(deepcopy=False))

    def is_waived(self, study: Study, number: int) -> bool:
        """Whether the trial is to be told with `tell_waived` instead of trained."""
        return WAIVED_KEY in study.get_trials(deepcopy=False)[number].system_attrs

    def tell_waived(self, study: Study, trial: Trial | int) -> None:
        """Ends a waived trial at no cost."""
        study.tell(trial, state=TrialState.PRUNED)

    def should_stop(self, study: Study, number: int, course: Course, fraction: float | None = None) -> Decision:
        """Whether the running trial `number` fills no open bin, judged by its course of (share, L0) so far.

        Reads what the suggestion of that trial was allowed to read.
        """
        landscape, group, log_coefficient, pending = self.stop_view(study, number)
        seen = fraction if fraction is not None else (course[-1][0] if course else 0.0)
        return landscape.should_stop(group, log_coefficient, course, seen, pending)

    def stop_view(self, study: Study, number: int) -> tuple[Landscape, Group, float, list[PendingTrial]]:
        """What `should_stop` judges trial `number` by: landscape, group, log coefficient, pending trials. Can be pickled."""
        trials = study.get_trials(deepcopy=False)
        trial = trials[number]
        group = self._group(trial)
        if group is None:
            raise ValueError(f"trial {number} has no {ARCHITECTURE} and {COEFFICIENT} of this sweep, it has {trial.params}")
        landscape, pending = self._view(study, trials, number)
        return landscape, group, math.log(trial.params[COEFFICIENT]), pending

    def coverage(self, study: Study) -> dict[Group, Coverage]:
        """The coverage of each group by all trials finished so far."""
        landscape = self._landscape(study, self._ended(study, study.get_trials(deepcopy=False)))
        return {group: coverage_of((record.l0 for record in landscape.records[group]), self.target) for group in self.spans}

    def explain(self, study: Study) -> dict[str, dict[str, Any]]:
        """For each group, from all ended trials: filled, open and unreachable bins with evidence, largest gap, spent."""
        landscape = self._landscape(study, self._ended(study, study.get_trials(deepcopy=False)))
        told = {}
        for group, coverage in self.coverage(study).items():
            records = landscape.records[group]
            unreachable = landscape.unreachable(group).values()
            outcomes = [record.outcome for record in records]
            told[" ".join(str(part) for part in group)] = {
                **coverage.as_record(),
                "counts": list(coverage.counts),
                "open": [int(index) for index in landscape.open_bins(group)],
                "unreachable": [{"bin": gone.bin, "reason": gone.reason, "trials": list(gone.trials)} for gone in unreachable],
                "outcomes": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
                "spent": sum(record.cost for record in records),
            }
        return told

    # -- Optuna's side

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.space

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        self._raise_error_if_multi_objective(study)
        ours = self._propose(study, trial) if search_space and set(search_space) <= set(self.space) else {}
        return {
            name: self._fitted(ours[name], distribution)
            if name in ours
            else self.sample_independent(study, trial, name, distribution)
            for name, distribution in search_space.items()
        }

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        self._raise_error_if_multi_objective(study)
        rng = np.random.default_rng([self.seed, trial.number, zlib.crc32(param_name.encode())])
        return RandomSampler(seed=int(rng.integers(2**31))).sample_independent(study, trial, param_name, param_distribution)

    def _propose(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        trials = study.get_trials(deepcopy=False)
        unread = self._unread(trials, trial.number)
        if unread is not None:
            raise RuntimeError(
                f"with window {self.window} trial {trial.number} needs the result of trial {unread}, which has not ended; "
                "ask when sampler.ready(study) says so, or set window=None and give up reproducible suggestions"
            )
        landscape, pending = self._view(study, trials, trial.number)
        fixed = trial.system_attrs.get("fixed_params", {})
        names = (ARCHITECTURE, *self.factors)
        groups = [
            group
            for group in self.spans
            if all(fixed.get(name, value) == value for name, value in zip(names, group, strict=True))
        ]
        proposal = propose(landscape, pending, groups or None)
        if proposal.waived and not fixed:
            study._storage.set_trial_system_attr(trial._trial_id, WAIVED_KEY, len(pending))
        return {**dict(zip(names, proposal.group, strict=True)), COEFFICIENT: math.exp(proposal.log_coefficient)}

    @staticmethod
    def _fitted(value: Any, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, FloatDistribution):
            return float(min(max(value, distribution.low), distribution.high))
        return value

    # -- reading the study

    def _unread(self, trials: Sequence[FrozenTrial], number: int) -> int | None:
        """The first trial that trial `number` reads and that has not ended, or None."""
        if self.window is None:
            return None
        readable = trials[: max(number - self.window + 1, 0)]
        return next((trial.number for trial in readable if not trial.state.is_finished()), None)

    def _group(self, trial: FrozenTrial) -> Group | None:
        """The group of a trial, or None if it is not one of this sweep."""
        params = trial.params
        if COEFFICIENT not in params or ARCHITECTURE not in params or any(name not in params for name in self.factors):
            return None
        group = (params[ARCHITECTURE], *(params[name] for name in self.factors))
        return group if group in self.spans else None

    def _cache(self, study: Study) -> "_Cache":
        return self._caches.setdefault(study._storage, _Cache())

    def _ended(self, study: Study, trials: Sequence[FrozenTrial]) -> list[TrialRecord]:
        """The records of the ended trials, each read once; without waived and foreign ones."""
        records, found = self._cache(study).records, []
        for trial in trials:
            if not trial.state.is_finished():
                continue
            if trial._trial_id not in records:
                group = self._group(trial)
                waived = WAIVED_KEY in trial.system_attrs and trial.state != TrialState.COMPLETE
                records[trial._trial_id] = None if group is None or waived else record_of(trial, group)
            record = records[trial._trial_id]
            if record is not None:
                found.append(record)
        return found

    def _view(self, study: Study, trials: Sequence[FrozenTrial], number: int) -> tuple[Landscape, list[PendingTrial]]:
        """What trial `number` may read, and the trials before it that it may not."""
        if self.window is None:
            others = [trial for trial in trials if trial.number != number]
            readable, unreadable = (
                others,
                [trial for trial in others if not trial.state.is_finished() and trial.number < number],
            )
        else:
            first = max(number - self.window + 1, 0)
            readable, unreadable = trials[:first], trials[first:number]
        pending = []
        for trial in unreadable:
            group = self._group(trial)
            if group is not None and WAIVED_KEY not in trial.system_attrs:
                pending.append(PendingTrial(trial.number, group, math.log(trial.params[COEFFICIENT])))
        return self._landscape(study, self._ended(study, readable)), pending

    def _landscape(self, study: Study, records: list[TrialRecord]) -> Landscape:
        landscapes = self._cache(study).landscapes
        key = (study._study_id, *(record.number for record in records))
        if key not in landscapes:
            landscapes[key] = Landscape(records, self.target, self.spans, repeats=self.repeats)
            while len(landscapes) > _LANDSCAPES_KEPT:
                landscapes.popitem(last=False)
        return landscapes[key]
