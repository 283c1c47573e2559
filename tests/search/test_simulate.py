"""Whole sweeps in virtual time: what they cost, that they end, that slots and kinds of trouble do not matter."""

import math
import time

import pytest

from prolu_tune.search.coverage import CoverageTarget
from prolu_tune.search.problems import make_problem
from prolu_tune.search.simulate import simulate

TARGET = CoverageTarget(5, 200, 16)


def steep(architecture, l1_coefficient, fraction, seed):
    """L0 falls by 1.5 per unit of log coefficient and sinks towards its end."""
    shift = {"a": 0.01, "b": 0.03, "c": 0.2}[architecture]
    return 30 * (l1_coefficient / shift) ** -1.5 * math.exp(2 * (math.exp(-fraction / 0.1) - math.exp(-10)))


def suggestions(result):
    return [
        (trial.architecture, trial.l1_coefficient, trial.l0 if trial.l0 == trial.l0 else None, trial.cost)
        for trial in result.trials
    ]


def test_every_architecture_is_covered_for_little_more_than_a_training_a_bin():
    ranges = dict.fromkeys("abc", (1e-5, 1.0))
    result = simulate(ranges, steep, l0=(5, 200), bins=16, max_trials=200)
    for name in "abc":
        coverage = result.coverage(name)
        assert (coverage.filled, coverage.bins) == (16, 16)
        assert coverage.largest_gap < 0.13
    assert result.cost < 1.1 * 48
    assert result.cost == pytest.approx(sum(trial.cost for trial in result.trials))


def test_one_to_eight_slots_give_the_same_sweep():
    problem = make_problem(3, num_architectures=2)
    sweeps = [
        simulate(problem.ranges, problem.response, l0=(5, 200), bins=8, max_trials=24, max_concurrent=slots, seed=4)
        for slots in (1, 2, 5, 8)
    ]
    assert all(suggestions(sweep) == suggestions(sweeps[0]) for sweep in sweeps)
    assert sweeps[3].duration < 0.75 * sweeps[0].duration


def test_max_trials_is_never_exceeded():
    result = simulate({"a": (1e-5, 1.0)}, steep, l0=(5, 200), bins=16, max_trials=7, max_concurrent=3)
    assert len(result.trials) == 7


def test_all_trainings_diverging_ends_the_sweep_with_the_evidence():
    result = simulate({"a": (1e-5, 1.0)}, lambda *_: math.nan, l0=(5, 200), bins=4, max_trials=100)
    assert len(result.trials) <= 12
    assert {trial.outcome for trial in result.trials} == {"diverged"}
    assert all(math.isnan(trial.l0) for trial in result.trials)
    reasons = [gone["reason"] for gone in result.explanation["a"]["unreachable"]]
    assert len(reasons) == 4
    assert "diverged" in reasons[0]


def test_dead_everywhere_ends_the_sweep():
    result = simulate({"a": (1e-5, 1.0)}, lambda *_: 0.0, l0=(5, 200), bins=4, max_trials=100)
    assert len(result.trials) <= 20 and result.cost < 3
    assert result.coverage("a").filled == 0


def test_a_ceiling_is_declared_and_not_paid_for_again():
    def saturated(architecture, l1_coefficient, fraction, seed):
        return min(steep(architecture, l1_coefficient, fraction, seed), 60.0)

    result = simulate({"a": (1e-5, 1.0)}, saturated, l0=(5, 200), bins=16, max_trials=200)
    above = [gone["bin"] for gone in result.explanation["a"]["unreachable"]]
    assert above == [11, 12, 13, 14, 15]
    assert result.coverage("a").filled == 11
    # Eight results late and with nobody to learn from, a lone architecture pays dearly for a ceiling just under an edge:
    # five trainings start before the first result may be read, two check a row of stops, and stops cost the rest.
    assert result.cost < 11 + 14
    assert len(result.trials) <= 45


def test_a_collapse_is_bracketed_and_declared():
    def collapsing(architecture, l1_coefficient, fraction, seed):
        return 0.0 if l1_coefficient > 0.012 and fraction > 0.1 else steep(architecture, l1_coefficient, fraction, seed)

    result = simulate({"a": (1e-5, 1.0)}, collapsing, l0=(5, 200), bins=16, max_trials=200)
    reachable = {TARGET.bin_of(l0) for l0 in (22.9, 30.0, 40.0, 60.0, 100.0, 150.0, 199.0)}
    filled = {TARGET.bin_of(trial.l0) for trial in result.trials if trial.outcome == "finished"}
    assert reachable <= filled
    assert "jumps over it" in str(result.explanation["a"]["unreachable"]) or "falls through" in str(result.explanation)
    assert result.cost < 1.35 * len(filled)


def test_repeats_fill_every_bin_again_and_only_when_asked():
    once = simulate({"a": (1e-5, 1.0)}, steep, l0=(5, 200), bins=6, max_trials=60)
    thrice = simulate({"a": (1e-5, 1.0)}, steep, l0=(5, 200), bins=6, max_trials=60, repeats=2)
    assert max(once.coverage("a").counts) == 1
    assert min(thrice.coverage("a").counts) >= 3


@pytest.mark.parametrize("seed", [1, 4])
def test_hard_problems_stay_within_the_promised_cost(seed):
    problem = make_problem(seed, num_architectures=4)
    result = simulate(problem.ranges, problem.response, l0=(5, 200), bins=16, max_trials=300, max_concurrent=6, seed=seed)
    reachable = {name: problem.reachable(name, TARGET) for name in problem.architectures}
    filled = {
        name: {TARGET.bin_of(t.l0) for t in result.trials if t.architecture == name and t.outcome == "finished"}
        for name in reachable
    }
    hit = sum(len(filled[name] & bins) for name, bins in reachable.items())
    assert hit >= 0.95 * sum(map(len, reachable.values()))
    assert result.cost / hit < 1.35


@pytest.mark.slow
def test_a_thousand_trials_take_seconds():
    begin = time.process_time()
    ranges = {f"a{k}": (1e-5, 1.0) for k in range(60)}
    result = simulate(
        ranges, lambda name, c, f, s: steep("a", c * (1 + int(name[1:]) / 20), f, s), l0=(5, 200), bins=16, max_trials=1000
    )
    assert len(result.trials) >= 950
    assert time.process_time() - begin < 60


def test_no_slot_is_refused():
    with pytest.raises(ValueError, match="max_concurrent must be at least 1"):
        simulate({"a": (1e-5, 1.0)}, steep, l0=(5, 200), bins=4, max_trials=3, max_concurrent=0)


def test_a_search_that_fills_nothing_more_gives_up_with_the_evidence():
    # Before the outside bound on stopped trials this problem repeated one coefficient 390 times.
    problem = make_problem(12, num_architectures=1)
    result = simulate(problem.ranges, problem.response, l0=(5, 200), bins=16, max_trials=400, seed=12, window=1)
    assert len(result.trials) < 40
