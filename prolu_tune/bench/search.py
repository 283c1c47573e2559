"""What a coverage sweep costs on simulated architectures, and how many trials other searches need for the same.

python -m prolu_tune.bench search [--problems 50] [--seed-offset 0] [--modes 2] [--baseline-problems 50]
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import optuna
from scipy.special import ndtr
from scipy.stats import qmc

from prolu_tune.search.coverage import CoverageTarget
from prolu_tune.search.problems import Problem, make_problem
from prolu_tune.search.simulate import Simulation, simulate

TARGET = CoverageTarget(5, 200, 16)
GIVE_UP = 8  # times our trials, after which a baseline is said to need more
Suggest = Callable[[list[tuple[float, float]]], float]
"""Position in the range (0 to 1) from the (position, log L0) pairs of one architecture so far."""


@dataclass(frozen=True)
class Ours:
    """One simulated sweep of ours.

    Args:
        hits: reachable bins filled.
        filled: bins filled, also those that less than 0.03 of log coefficient leads to.
        reachable: reachable bins.
        trials: trainings started.
        cost: in full trainings.
        ms_per_trial: processor time of the whole search (suggesting, stopping, telling).
        wrong_stops: share of the stopped trials that would have filled a bin which no earlier trial had filled.
        lost_stops: share of the stopped trials that would have filled a reachable bin which stayed empty to the end.
    """

    hits: int
    filled: int
    reachable: int
    trials: int
    cost: float
    ms_per_trial: float
    wrong_stops: float
    lost_stops: float


def measure(problem: Problem, seed: int, *, max_concurrent: int, window: int | None) -> Ours:
    """Our sweep on one problem."""
    begin = time.process_time()
    result = simulate(
        problem.ranges,
        problem.response,
        l0=(TARGET.low, TARGET.high),
        bins=TARGET.bins,
        max_trials=500,
        max_concurrent=max_concurrent,
        seed=seed,
        window=window,
    )
    spent = time.process_time() - begin
    reachable = {name: problem.reachable(name, TARGET) for name in problem.architectures}
    filled = _filled(result)
    hits = sum(len(filled[name] & bins) for name, bins in reachable.items())
    stopped = [trial for trial in result.trials if trial.outcome == "stopped"]
    wrong = lost = 0
    for trial in stopped:
        landed = TARGET.bin_of(problem.response(trial.architecture, trial.l1_coefficient, 1.0, trial.seed))
        earlier = {
            TARGET.bin_of(other.l0) for other in result.trials[: trial.number] if other.architecture == trial.architecture
        }
        wrong += landed is not None and landed not in earlier
        lost += landed in reachable[trial.architecture] - filled[trial.architecture]
    return Ours(
        hits,
        sum(map(len, filled.values())),
        sum(map(len, reachable.values())),
        len(result.trials),
        result.cost,
        1e3 * spent / len(result.trials),
        wrong / max(len(stopped), 1),
        lost / max(len(stopped), 1),
    )


def _filled(result: Simulation) -> dict[str, set[int]]:
    filled: dict[str, set[int]] = {}
    for trial in result.trials:
        place = TARGET.bin_of(trial.l0)
        filled.setdefault(trial.architecture, set()).update(() if place is None else (place,))
    return filled


# -- the baselines: one architecture at a time gets a trial, in turn


def gap_middle(seen: list[tuple[float, float]]) -> float:
    """The middle of the longest stretch of log L0 that nothing has landed in."""
    inside = sorted(level for _, level in seen if TARGET.log_low <= level <= TARGET.log_high)
    points = [TARGET.log_low, *inside, TARGET.log_high]
    _, left = max((right - left, left) for left, right in pairwise(points))
    right = min(point for point in points if point > left)
    return (left + right) / 2


def random_search(rng: np.random.Generator) -> Suggest:
    """Log-uniform."""
    return lambda seen: float(rng.random())


def sobol_search(rng: np.random.Generator) -> Suggest:
    """A scrambled Sobol sequence."""
    points = iter(qmc.Sobol(1, rng=rng).random_base2(12)[:, 0])
    return lambda seen: float(next(points))


def tpe_search(rng: np.random.Generator) -> Suggest:
    """Optuna's TPE, told how far each trial landed from the middle of the longest gap of its time."""
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=int(rng.integers(2**31))))
    asked: list[tuple[optuna.Trial, float]] = []

    def suggest(seen: list[tuple[float, float]]) -> float:
        if asked:
            trial, aim = asked.pop()
            study.tell(trial, min(abs(seen[-1][1] - aim), 10.0))
        trial = study.ask()
        asked.append((trial, gap_middle(seen)))
        return trial.suggest_float("x", 0.0, 1.0)

    return suggest


def gp_search(rng: np.random.Generator) -> Suggest:
    """A Gaussian process with expected improvement on the same figure."""
    aims: list[float] = []
    grid = np.linspace(0, 1, 201)

    def suggest(seen: list[tuple[float, float]]) -> float:
        values = np.array([min(abs(level - aim), 3.0) for (_, level), aim in zip(seen, aims, strict=True)])
        aims.append(gap_middle(seen))
        if len(seen) < 4:
            return float(rng.random())
        x, values = np.array([x for x, _ in seen])[-120:], values[-120:]
        covariance = np.exp(-(((x[:, None] - x) / 0.08) ** 2) / 2) + 0.05 * np.eye(len(x))
        cross = np.exp(-(((grid[:, None] - x) / 0.08) ** 2) / 2)
        centre, scale = values.mean(), values.std() + 1e-6
        solved = np.linalg.solve(covariance, np.column_stack([(values - centre) / scale, cross.T]))
        mean, sd = cross @ solved[:, 0], np.sqrt(np.maximum(1.05 - (cross * solved[:, 1:].T).sum(axis=1), 1e-6))
        better = ((values.min() - centre) / scale - mean) / sd
        gain = sd * (better * ndtr(better) + np.exp(-(better**2) / 2) / math.sqrt(2 * math.pi))
        return float(grid[int(np.argmax(gain + 1e-9 * rng.random(len(grid))))])

    return suggest


SEARCHES = {"random": random_search, "Sobol": sobol_search, "TPE on the gap": tpe_search, "GP on the gap": gp_search}


def landings(problem: Problem, seed: int, make: Callable[[np.random.Generator], Suggest]) -> Iterator[tuple[str, int | None]]:
    """Endless (architecture, bin) of the trials of a baseline."""
    low, high = (math.log(end) for end in problem.span)
    searches = {name: make(np.random.default_rng([seed, k])) for k, name in enumerate(problem.architectures)}
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in searches}
    number = 0
    while True:
        for name, suggest in searches.items():
            x = suggest(seen[name])
            l0 = problem.response(name, math.exp(low + x * (high - low)), 1.0, number)
            number += 1
            seen[name].append((x, math.log(max(l0, 1e-3)) if math.isfinite(l0) else -9.0))
            yield name, TARGET.bin_of(l0)


def trials_needed(problem: Problem, seed: int, ours: Ours, make: Callable[[np.random.Generator], Suggest]) -> int:
    """Trials of a baseline until it has filled as many reachable bins as we did; at most `GIVE_UP` times ours."""
    reachable = {name: problem.reachable(name, TARGET) for name in problem.architectures}
    filled: set[tuple[str, int]] = set()
    for number, (name, place) in enumerate(landings(problem, seed, make), start=1):
        if place in reachable[name]:
            filled.add((name, place))
        if len(filled) >= ours.hits or number >= GIVE_UP * ours.trials:
            return number
    raise AssertionError("landings never end")


def grid_needed(problem: Problem, seed: int, ours: Ours) -> int:
    """Trials of the smallest even grid, the same for every architecture, that fills as many reachable bins as we did."""
    low, high = (math.log(end) for end in problem.span)
    reachable = {name: problem.reachable(name, TARGET) for name in problem.architectures}
    count = 8
    while count * len(reachable) < GIVE_UP * ours.trials:
        hits = 0
        for offset, (name, bins) in enumerate(reachable.items()):
            l0s = [
                problem.response(name, math.exp(x), 1.0, 1000 * offset + k) for k, x in enumerate(np.linspace(low, high, count))
            ]
            hits += len({TARGET.bin_of(l0) for l0 in l0s} & bins)
        if hits >= ours.hits:
            return count * len(reachable)
        count = math.ceil(count * 1.05)
    return GIVE_UP * ours.trials


MODES: dict[str, tuple[int, int | None]] = {
    "one at a time, window 8": (1, 8),
    "6 at once, window 8": (6, 8),
    "one at a time, window 1": (1, 1),
    "one at a time, window 4": (1, 4),
    "one at a time, window 16": (1, 16),
    "6 at once, everything read": (6, None),
}
"""Trainings at once, and the window; with a window every number of slots up to it gives the same list."""


def main(argv: list[str] | None = None) -> None:
    """Prints both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=50, help="simulated problems of six architectures (default 50)")
    parser.add_argument(
        "--seed-offset", type=int, default=0, help="seed of the first problem; others give fresh ones (default 0)"
    )
    parser.add_argument("--modes", type=int, default=2, help=f"how many rows of the first table, 1 to {len(MODES)} (default 2)")
    parser.add_argument("--baseline-problems", type=int, help="problems for the other searches, 0 for none (default: all)")
    options = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seeds = range(options.seed_offset, options.seed_offset + options.problems)
    problems = {seed: make_problem(seed) for seed in seeds}
    print(f"{len(problems)} problems of 6 architectures from seed {options.seed_offset}, 16 bins of L0 5 to 200: medians\n")
    print("| coverage sweep | cost per reachable bin | per bin | reachable filled | trials | ms | wrong stops | lost a bin |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    reference: dict[int, Ours] = {}
    for name, (max_concurrent, window) in list(MODES.items())[: options.modes]:
        runs = {
            seed: measure(problem, seed, max_concurrent=max_concurrent, window=window) for seed, problem in problems.items()
        }
        reference = reference or runs
        print(_row(name, list(runs.values())), flush=True)
    compared = list(seeds)[: options.baseline_problems]
    if compared:
        print(f"\n{len(compared)} of these problems:\n")
        print("| other search | its trials over our trials, for the same bins | its trainings over our cost | gave up |")
        print("| --- | --- | --- | --- |")
    searches = {"grid": grid_needed} | {name: partial(trials_needed, make=make) for name, make in SEARCHES.items()}
    for name, needed in searches.items() if compared else ():
        pairs = [(needed(problems[seed], seed, ours=reference[seed]), reference[seed]) for seed in compared]
        gave_up = sum(count >= GIVE_UP * ours.trials for count, ours in pairs)
        print(
            f"| {name} | {statistics.median(count / ours.trials for count, ours in pairs):.1f} "
            f"| {statistics.median(count / ours.cost for count, ours in pairs):.1f} | {gave_up} of {len(pairs)} |",
            flush=True,
        )


def _row(name: str, runs: list[Ours]) -> str:
    """A row of the first table."""
    cost, share = [run.cost / run.hits for run in runs], [run.hits / run.reachable for run in runs]
    return (
        f"| {name} | {statistics.median(cost):.3f} ({statistics.mean(cost):.3f}) "
        f"| {statistics.median(run.cost / run.filled for run in runs):.3f} "
        f"| {statistics.median(share):.1%} ({statistics.mean(share):.1%}) "
        f"| {statistics.median(run.trials for run in runs):.0f} | {statistics.mean(run.ms_per_trial for run in runs):.0f} "
        f"| {statistics.mean(run.wrong_stops for run in runs):.1%} "
        f"| {statistics.mean(run.lost_stops for run in runs):.1%} |"
    )


if __name__ == "__main__":
    main()
