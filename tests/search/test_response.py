"""The response model against curves that are known."""

import math

import numpy as np
import pytest

from prolu_tune.search.coverage import CoverageTarget
from prolu_tune.search.response import Observation, Response, ResponsePrior, clipped_log

TARGET = CoverageTarget(5, 200, 16)
SPAN = (-9.0, 2.5)
PRIOR = ResponsePrior(location=-3.25, location_sd=3.4)


def power_law(x, *, slope=-1.4, location=-3.0):
    return math.log(30) + slope * (x - location)


def observe(curve, xs, *, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return [Observation(x, curve(x) + noise * rng.standard_normal(), 0.0, i) for i, x in enumerate(xs)]


def test_nothing_seen_leaves_the_whole_range_possible():
    response = Response([], SPAN, TARGET, PRIOR)
    chance = response.probabilities(np.linspace(*SPAN, 50)).sum(axis=1)
    assert not response.located
    assert chance.max() < 0.6
    assert chance.min() > 0.01


def test_a_power_law_seen_four_times_is_foretold_between_and_beside():
    response = Response(observe(power_law, [-4.0, -3.4, -2.8, -2.2]), SPAN, TARGET, PRIOR)
    xs = np.array([-3.7, -3.1, -2.5, -4.2])
    mean, sd = response.landing(xs)
    assert mean == pytest.approx([power_law(x) for x in xs], abs=0.06)
    assert (sd < 0.4).all()
    assert sd[:3].max() < sd[3]


def test_predictions_are_as_sure_as_they_are_right():
    inside, total = 0, 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        bend = rng.uniform(-0.5, 0.3)
        slope = -rng.uniform(1, 2)

        def curve(x, slope=slope, bend=bend):
            return math.log(30) + slope * (x + 3) + bend * 0.5 * math.log1p(math.exp((x + 3) / 0.5))

        seen = observe(curve, rng.uniform(-4.2, -2, 6), noise=0.04, seed=seed)
        response = Response(seen, SPAN, TARGET, PRIOR)
        xs = np.linspace(-4, -2.2, 9)
        mean, sd = response.landing(xs)
        truth = np.array([curve(x) for x in xs]) + 0.04 * rng.standard_normal(9)
        inside += int((np.abs(truth - mean) < 2 * sd).sum())
        total += len(xs)
    assert 0.85 < inside / total <= 1.0


def test_far_above_the_range_the_next_guess_is_at_larger_coefficients():
    response = Response([Observation(-6.0, math.log(900), 0.0, 0)], SPAN, TARGET, PRIOR)
    xs = np.linspace(*SPAN, 200)
    assert -5.7 < xs[response.probabilities(xs).sum(axis=1).argmax()] < -2.5


def test_l0_of_zero_bounds_the_curve_and_is_no_slope():
    zero = Observation(-2.0, clipped_log(0.0, TARGET), 0.0, 0)
    response = Response([zero], SPAN, TARGET, PRIOR)
    xs = np.array([-6.0, -4.0, -1.5, 1.0])
    chance = response.probabilities(xs).sum(axis=1)
    assert chance[2] < 0.05 and chance[3] < 0.05
    assert chance[1] > 0.15


def test_between_the_sides_of_a_cliff_every_bin_is_equally_likely():
    curve = [(-3.6, 4.3), (-3.4, 4.0), (-3.2, 3.7), (-3.1, 2.0), (-2.9, 1.8)]
    response = Response([Observation(x, y, 0.0, i) for i, (x, y) in enumerate(curve)], SPAN, TARGET, PRIOR)
    chance = response.probabilities(np.array([-3.15]))[0]
    hit = chance[(TARGET.log_centers > 2.2) & (TARGET.log_centers < 3.5)]
    assert hit == pytest.approx(np.full(len(hit), TARGET.bin_width / 1.7), rel=1e-6)


def test_a_curve_that_has_gone_flat_is_not_expected_to_rise_again():
    rising = Response(observe(power_law, [-4.0, -3.5, -3.0]), SPAN, TARGET, PRIOR)
    flat = [Observation(x, y, 0.0, i) for i, (x, y) in enumerate([(-4.6, 4.0), (-4.2, 3.98), (-3.5, 3.6), (-3.0, 3.2)])]
    saturated = Response(flat, SPAN, TARGET, PRIOR)
    higher = TARGET.log_centers > 4.3
    xs = np.linspace(-8, -4.7, 40)
    assert rising.probabilities(np.linspace(-8, -4.05, 40))[:, higher].sum(axis=1).max() > 0.8
    assert saturated.probabilities(xs)[:, higher].sum(axis=1).max() < 0.15


def test_probabilities_are_probabilities():
    rng = np.random.default_rng(5)
    for count in (0, 1, 2, 5, 30):
        seen = [
            Observation(float(x), float(y), float(sd), i)
            for i, (x, y, sd) in enumerate(
                zip(rng.uniform(*SPAN, count), rng.uniform(-1, 8, count), rng.uniform(0, 0.5, count), strict=True)
            )
        ]
        chance = Response(seen, SPAN, TARGET, PRIOR).probabilities(np.linspace(*SPAN, 77))
        assert chance.shape == (77, 16)
        assert np.isfinite(chance).all()
        assert (chance >= 0).all() and (chance.sum(axis=1) <= 1 + 1e-9).all()
