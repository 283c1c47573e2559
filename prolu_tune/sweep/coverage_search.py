"""Proposes the trials of a coverage sweep: Optuna's study asks our sampler, the space turns its answer into a trial."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from prolu_tune.search.landscape import Landscape
from prolu_tune.search.records import Group, PendingTrial
from prolu_tune.search.sampler import ARCHITECTURE, COEFFICIENT, L0CoverageSampler
from prolu_tune.search.space import CoverageSearch, SearchSpace, Variant
from prolu_tune.sweep.study import Proposal, StopRule, next_index

SEED = "seed"


def make_sampler(space: SearchSpace) -> L0CoverageSampler:
    """Returns the sampler of a coverage space; `grid` and several seeds become factors, each covered on its own."""
    search = space.search
    assert isinstance(search, CoverageSearch)
    factors: dict[str, tuple[Any, ...]] = dict(space.grid)
    if len(space.seeds) > 1:
        factors[SEED] = space.seeds
    return L0CoverageSampler(
        {name: space.coefficient_range(name) for name in space.architectures},
        l0=search.l0,
        bins=search.bins,
        max_trials=search.max_trials,
        window=search.window,
        factors=factors,
        repeats=search.repeats,
    )


@dataclass(frozen=True)
class CoverageStopRule:
    """What the sampler knew when a trial was proposed; travels to the trial's process."""

    landscape: Landscape
    group: Group
    log_coefficient: float
    pending: list[PendingTrial]

    def decide(self, course: Sequence[tuple[float, float]]) -> tuple[bool, float | None]:
        """Returns (whether to stop now, predicted final L0)."""
        if not course:
            return False, None
        decision = self.landscape.should_stop(self.group, self.log_coefficient, course, course[-1][0], self.pending)
        return decision.stop, decision.predicted_l0


class CoverageProposer:
    """Asks the sampler for the next coefficient; waits while a result that it must read is missing."""

    def __init__(self, space: SearchSpace) -> None:
        assert isinstance(space.search, CoverageSearch)
        self._space = space
        self._early_stopping = space.search.early_stopping
        self.sampler = make_sampler(space)

    def propose(self, study: Study) -> "Proposal | Literal['wait', 'done']":
        """Returns the next trial; 'wait' for a result inside the window; 'done' when nothing is left to fill."""
        while True:
            entry = self._unborn(study)
            if entry is None:
                if self.sampler.is_done(study):
                    return "done"
                if not self.sampler.ready(study):
                    return "wait"
                trial = self.sampler.ask(study)
            else:
                trial = Trial(study, entry._trial_id)
                for name, distribution in self.sampler.space.items():
                    trial._suggest(name, distribution)
            if self.sampler.is_waived(study, trial.number):
                self.sampler.tell_waived(study, trial)
                continue
            return self._born(study, trial)

    def total(self, study: Study) -> int | None:
        """Returns the number of trials once the search is over, else None: the sampler stops when all is filled."""
        return next_index(study) if self.sampler.is_done(study) and self._unborn(study) is None else None

    def stop_rule(self, study: Study, number: int) -> StopRule | None:
        """Returns what the sampler's early stopping knows about an entry."""
        return CoverageStopRule(*self.sampler.stop_view(study, number)) if self._early_stopping else None

    def metrics(self, study: Study) -> dict[str, float]:
        """Returns each group's coverage: bins filled, share of them, largest gap, full trainings spent."""
        told = {}
        for group, facts in self.sampler.explain(study).items():
            name = group.replace("+", "_").replace(" ", "_")
            told |= {f"coverage/{name}/{key}": float(facts[key]) for key in ("filled", "bins", "largest_gap", "spent")}
        return told

    def _unborn(self, study: Study) -> FrozenTrial | None:
        """An entry that a crash left without its configuration: the sampler gives it the same parameters again."""
        running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        return next((entry for entry in running if "config" not in entry.user_attrs), None)

    def _born(self, study: Study, trial: Trial) -> Proposal:
        params = trial.params
        variant = Variant(
            architecture=params[ARCHITECTURE],
            factors=tuple((key, params[key]) for key in self._space.grid),
            seed=params.get(SEED, self._space.seeds[0]),
        )
        config = self._space.trial(variant, params[COEFFICIENT])
        index = next_index(study)
        study._storage.set_trial_user_attr(trial._trial_id, "index", index)
        study._storage.set_trial_user_attr(trial._trial_id, "config", config.model_dump_json())
        return Proposal(index=index, config=config, stop_rule=self.stop_rule(study, trial.number))
