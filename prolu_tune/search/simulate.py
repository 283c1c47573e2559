"""A whole coverage sweep on a formula instead of training, in virtual time, with the sampler and rules of a real one."""

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import optuna

from prolu_tune.search.coverage import Coverage, CoverageTarget, coverage_of
from prolu_tune.search.sampler import DEFAULT_WINDOW, L0CoverageSampler
from prolu_tune.search.stopping import is_decision

ResponseFormula = Callable[[str, float, float, int], float]
_REPORTS = 20  # times a training reports its L0


@dataclass(frozen=True)
class SimulatedTrial:
    """One training of a simulated sweep.

    Args:
        number: index among the trials.
        architecture: its name.
        l1_coefficient: its coefficient.
        l0: final L0; NaN unless the trial finished.
        cost: share of a full training that was spent.
        outcome: `finished`, `stopped` or `diverged`.
        predicted_l0: where a stopped trial was going to land, else None.
        start: virtual time at which it started, in full trainings.
        seed: that its response was asked with.
    """

    number: int
    architecture: str
    l1_coefficient: float
    l0: float
    cost: float
    outcome: str
    predicted_l0: float | None
    start: float
    seed: int

    @property
    def end(self) -> float:
        return self.start + self.cost


@dataclass(frozen=True)
class Simulation:
    """A simulated sweep: its trials in the order in which they were suggested, and what they reached."""

    trials: tuple[SimulatedTrial, ...]
    target: CoverageTarget
    explanation: dict[str, dict[str, object]]

    @property
    def cost(self) -> float:
        """Spent in full trainings."""
        return sum(trial.cost for trial in self.trials)

    @property
    def duration(self) -> float:
        """Virtual time from the first start to the last end, in full trainings."""
        return max((trial.end for trial in self.trials), default=0.0)

    def coverage(self, architecture: str) -> Coverage:
        """The coverage of one architecture: `filled`, `bins`, `largest_gap`."""
        finals = (trial.l0 for trial in self.trials if trial.architecture == architecture and trial.outcome == "finished")
        return coverage_of(finals, self.target)


def simulate(
    architectures: Mapping[str, tuple[float, float]],
    response: ResponseFormula,
    *,
    l0: tuple[float, float],
    bins: int,
    max_trials: int,
    max_concurrent: int = 1,
    seed: int = 0,
    window: int | None = DEFAULT_WINDOW,
    repeats: int = 0,
    early_stopping: bool = True,
) -> Simulation:
    """A coverage sweep as it would unfold.

    Args:
        architectures: range of `l1_coefficient` by name.
        response: `response(architecture, l1_coefficient, fraction, seed)` is the L0 seen after that share of training
            (1.0: the end; NaN: diverged). `seed` is another one for every trial.
        l0: lowest and highest L0 wanted.
        bins: equal bins of log L0 in that range.
        max_trials: trainings at most.
        max_concurrent: trainings at once; no effect on what is suggested, unless above `window` or with `window=None`.
        seed: of the trials' seeds.
        window: as in `L0CoverageSampler`.
        repeats: as in `L0CoverageSampler`.
        early_stopping: False trains every trial to its end.

    Raises:
        ValueError: if an argument makes no sense.
    """
    if max_concurrent < 1:
        raise ValueError(f"max_concurrent must be at least 1, got {max_concurrent}")
    sampler = L0CoverageSampler(
        architectures, l0=l0, bins=bins, max_trials=max_trials, window=window, repeats=repeats, seed=seed
    )
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return _run(sampler, response, max_concurrent, seed, early_stopping)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _run(
    sampler: L0CoverageSampler, response: ResponseFormula, max_concurrent: int, seed: int, early_stopping: bool
) -> Simulation:
    study = optuna.create_study(sampler=sampler)
    running: list[tuple[float, int, SimulatedTrial, list[list[float]]]] = []
    trials: list[SimulatedTrial] = []
    now = 0.0
    while True:
        while len(running) < max_concurrent and sampler.ready(study) and not sampler.is_done(study):
            asked = sampler.ask(study)
            if sampler.is_waived(study, asked.number):
                sampler.tell_waived(study, asked)
                continue
            trial, course = _train(sampler, study, asked, response, len(trials), seed, now, early_stopping)
            trials.append(trial)
            heapq.heappush(running, (trial.end, asked.number, trial, course))
        if not running:
            break
        now, number, trial, course = heapq.heappop(running)
        _tell(study, number, trial, course)
    return Simulation(tuple(trials), sampler.target, sampler.explain(study))


def _train(
    sampler: L0CoverageSampler,
    study: optuna.Study,
    asked: optuna.Trial,
    response: ResponseFormula,
    number: int,
    seed: int,
    now: float,
    early_stopping: bool,
) -> tuple[SimulatedTrial, list[list[float]]]:
    """The trial as it ends, and its course. What it may read is known when it starts, so it can be run ahead."""
    architecture, coefficient = asked.params["architecture"], asked.params["l1_coefficient"]
    trial_seed = seed * 1_000_003 + asked.number
    course: list[list[float]] = []
    outcome, final, predicted, fraction = "finished", math.nan, None, 1.0
    for report in range(1, _REPORTS + 1):
        fraction = report / _REPORTS
        seen = float(response(architecture, coefficient, fraction, trial_seed))
        if not math.isfinite(seen):
            outcome = "diverged"
            break
        course.append([fraction, seen])
        if fraction == 1.0:
            final = seen
        elif early_stopping and is_decision(fraction):
            decision = sampler.should_stop(study, asked.number, course, fraction)
            if decision.stop:
                outcome, predicted = "stopped", decision.predicted_l0
                break
    return SimulatedTrial(number, architecture, coefficient, final, fraction, outcome, predicted, now, trial_seed), course


def _tell(study: optuna.Study, number: int, trial: SimulatedTrial, course: list[list[float]]) -> None:
    """Writes the outcome into the study, as the runner of a real sweep does."""
    asked = optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
    asked.set_user_attr("outcome", trial.outcome)
    asked.set_user_attr("course", course)
    asked.set_user_attr("fraction", trial.cost)
    asked.set_user_attr("cost", trial.cost)
    if trial.outcome == "finished":
        asked.set_user_attr("l0", trial.l0)
        study.tell(number, trial.l0)
    elif trial.outcome == "stopped":
        asked.set_user_attr("predicted_l0", trial.predicted_l0)
        study.tell(number, state=optuna.trial.TrialState.PRUNED)
    else:
        study.tell(number, state=optuna.trial.TrialState.FAIL)
