"""Coverage against hand-made cases and a slow count."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prolu_tune.search.coverage import CoverageTarget, coverage_of, largest_gap

TARGET = CoverageTarget(1.0, 16.0, 4)


def test_bins_are_equal_in_log_l0_and_hold_their_lower_edge():
    assert [TARGET.bin_of(l0) for l0 in (1.0, 1.99, 2.01, 4.01, 8.01, 16.0)] == [0, 0, 1, 2, 3, 3]


@pytest.mark.parametrize("l0", [None, 0.0, 0.999, 16.001, math.nan, math.inf])
def test_what_lies_outside_or_is_no_number_is_in_no_bin(l0):
    assert TARGET.bin_of(l0) is None


def test_largest_gap_counts_the_ends_of_the_range():
    assert largest_gap([], TARGET) == 1.0
    assert largest_gap([1.0], TARGET) == pytest.approx(1.0)
    assert largest_gap([4.0], TARGET) == pytest.approx(0.5)
    assert largest_gap([1.0, 2.0, 8.0, 16.0], TARGET) == pytest.approx(0.5)
    assert largest_gap([2.0, 4.0, math.nan, 0.0, 400.0], TARGET) == pytest.approx(0.5)


def test_the_record_has_the_keys_of_the_contract():
    record = coverage_of([1.5, 1.6, 9.0, 0.0], TARGET).as_record()
    assert record["target"] == [1.0, 16.0]
    assert (record["bins"], record["filled"]) == (4, 2)
    assert record["largest_gap"] == pytest.approx((math.log(9) - math.log(1.6)) / math.log(16))


@pytest.mark.parametrize(("low", "high", "bins"), [(0, 5, 4), (5, 5, 4), (5, math.inf, 4), (5, 200, 0)])
def test_a_target_without_sense_is_refused(low, high, bins):
    with pytest.raises(ValueError, match=r"L0 range|bins"):
        CoverageTarget(low, high, bins)


@given(
    st.lists(st.floats(0.01, 1000), max_size=30),
    st.floats(0.5, 20),
    st.floats(1.5, 50),
    st.integers(1, 40),
)
def test_coverage_equals_a_slow_count(l0s, low, ratio, bins):
    target = CoverageTarget(low, low * ratio, bins)
    coverage = coverage_of(l0s, target)
    edges = [low * ratio ** (k / bins) for k in range(bins + 1)]
    inside = [l0 for l0 in l0s if target.low <= l0 <= target.high]
    assert sum(coverage.counts) == len(inside)
    for k in range(bins):
        surely = sum(edges[k] * (1 + 1e-9) < l0 < edges[k + 1] * (1 - 1e-9) for l0 in inside)
        perhaps = sum(edges[k] * (1 - 1e-9) <= l0 <= edges[k + 1] * (1 + 1e-9) for l0 in inside)
        assert surely <= coverage.counts[k] <= perhaps
    points = sorted([low, low * ratio, *inside])
    widest = max(math.log(right / left) for left, right in pairwise(points))
    assert coverage.largest_gap == pytest.approx(widest / math.log(ratio), abs=1e-9)
