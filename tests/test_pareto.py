"""Frontiers against a definition written out, hypervolumes against moocore."""

import math

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prolu_tune.pareto import frontier_by_group, hypervolume, pareto_frontier, reference_point

# Few distinct values, so that ties and equal points are the rule.
coarse = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, -1.0])
anything = st.one_of(coarse, st.none(), st.sampled_from([math.nan, math.inf, -math.inf]), st.floats(-1e6, 1e6))
points_of = st.lists(st.tuples(anything, anything), max_size=25)


def usable(point):
    return all(value is not None and math.isfinite(value) for value in point)


def dominates(a, b):
    return a[0] <= b[0] and a[1] <= b[1] and (a[0] < b[0] or a[1] < b[1])


@given(points_of)
def test_the_frontier_is_what_the_definition_says(points):
    expected = {i for i, p in enumerate(points) if usable(p) and not any(usable(q) and dominates(q, p) for q in points)}
    assert set(pareto_frontier(points)) == expected


@given(points_of)
def test_the_frontier_comes_by_ascending_x_and_descending_y(points):
    chosen = [points[i] for i in pareto_frontier(points)]
    assert chosen == sorted(chosen, key=lambda p: (p[0], -p[1]))


def test_of_a_tie_in_one_value_only_the_better_point_stays():
    assert pareto_frontier([(1.0, 2.0), (1.0, 1.0), (2.0, 1.0)]) == [1]


def test_equal_points_are_all_on_the_frontier_or_all_off_it():
    assert pareto_frontier([(1.0, 1.0), (2.0, 2.0), (1.0, 1.0), (2.0, 2.0)]) == [0, 2]


def test_a_single_run_is_its_own_frontier():
    assert pareto_frontier([(5.0, 0.1)]) == [0]


def test_nothing_and_nothing_usable_have_an_empty_frontier_and_no_reference():
    assert pareto_frontier([]) == []
    assert pareto_frontier([(None, 1.0), (math.nan, 0.0), (-math.inf, 0.0)]) == []
    assert reference_point([(None, 1.0)]) is None
    assert hypervolume([], (1.0, 1.0)) == 0.0


def test_a_diverged_run_hides_no_other():
    assert pareto_frontier([(-math.inf, -math.inf), (0.0, math.nan), (3.0, 3.0)]) == [2]


def test_each_group_has_a_frontier_of_its_own_in_the_order_of_appearance():
    points = [(1.0, 1.0), (2.0, 2.0), (3.0, 0.5), (1.5, 3.0), (None, None)]
    assert frontier_by_group(points, ["b", "a", "b", "a", "c"]) == {"b": [0, 2], "a": [3, 1], "c": []}


def test_the_reference_lies_a_tenth_of_the_range_beyond_the_worst():
    assert reference_point([(0.0, 1.0), (10.0, 3.0), (None, 99.0)]) == pytest.approx((11.0, 3.2))


def test_a_single_run_measured_to_itself_has_no_area():
    assert hypervolume([(4.0, 2.0)], (4.0, 2.0)) == 0.0


def test_the_area_of_two_steps_by_hand():
    # (3-1)*(4-3) from the first step, (3-2)*(3-1) more from the second.
    assert hypervolume([(1.0, 3.0), (2.0, 1.0), (2.5, 3.5)], (3.0, 4.0)) == pytest.approx(2.0 * 1.0 + 1.0 * 2.0)


@given(st.lists(st.tuples(st.one_of(coarse, st.floats(-5, 5)), coarse), min_size=1, max_size=30), coarse, coarse)
def test_areas_equal_those_of_moocore(points, x, y):
    expected = moocore.hypervolume(np.array(points, dtype=float), ref=[x, y])
    assert hypervolume(points, (x, y)) == pytest.approx(expected, rel=1e-12, abs=1e-12)
