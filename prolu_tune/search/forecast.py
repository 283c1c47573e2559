"""What a coverage sweep is going to cost: the very sweep, simulated on usual response curves."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from prolu_tune.search.coverage import CoverageTarget
from prolu_tune.search.parts import CoverageSearch
from prolu_tune.search.problems import usual_problem
from prolu_tune.search.simulate import Simulation, simulate
from prolu_tune.search.space import SearchSpace

SWEEPS = 3
_MOST_GROUPS, _MOST_BINS = 3, 16  # that are simulated, so that a plan takes seconds; the rest is in proportion


@dataclass(frozen=True)
class Expected:
    """The lowest, the middle and the highest of what the simulated sweeps came to."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """How a coverage sweep unfolds where the range of coefficients leads to every bin.

    Args:
        sweeps: how many were simulated.
        trials: trainings started.
        stopped: of them stopped early.
        cost: in full trainings.
        filled: share of the bins that is filled.
    """

    sweeps: int
    trials: Expected
    stopped: Expected
    cost: Expected
    filled: Expected


def forecast(space: SearchSpace, *, max_concurrent: int = 1) -> Forecast:
    """The forecast of a coverage space, in a few seconds whatever its size.

    Args:
        space: with search kind coverage.
        max_concurrent: trials at once; no effect with a window.
    """
    search = space.search
    assert isinstance(search, CoverageSearch)
    groups = [variant.architecture for variant in space.variants()]
    bins = min(search.bins, _MOST_BINS)
    chosen = list(dict.fromkeys(f"{name} {i // len(space.architectures)}" for i, name in enumerate(groups)))[:_MOST_GROUPS]
    share = len(chosen) * bins / (len(groups) * search.bins)
    ranges = {name: space.coefficient_range(name.split()[0]) for name in chosen}
    target = CoverageTarget(*search.l0, bins)
    runs = []
    for seed in range(SWEEPS):
        problem = usual_problem(seed, ranges, target)
        runs.append(
            simulate(
                ranges,
                problem.response,
                l0=search.l0,
                bins=bins,
                max_trials=max(1, math.ceil(search.max_trials * share)),
                max_concurrent=max_concurrent,
                seed=seed,
                window=search.window,
                repeats=search.repeats,
                early_stopping=search.early_stopping,
            )
        )
    most = search.max_trials
    return Forecast(
        sweeps=SWEEPS,
        trials=_expected([min(round(len(run.trials) / share), most) for run in runs]),
        stopped=_expected([round(sum(trial.outcome == "stopped" for trial in run.trials) / share) for run in runs]),
        cost=_expected([min(run.cost / share, most) for run in runs]),
        filled=_expected([_share_filled(run, chosen) for run in runs]),
    )


def _share_filled(run: Simulation, groups: Sequence[str]) -> float:
    return sum(run.coverage(group).filled for group in groups) / (len(groups) * run.target.bins)


def _expected(values: Sequence[float]) -> Expected:
    return Expected(min(values), statistics.median(values), max(values))
