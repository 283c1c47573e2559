"""Early stopping: what is learned from courses, and what it decides."""

import math

import numpy as np
import pytest

from prolu_tune.search.courses import CourseModel
from prolu_tune.search.coverage import CoverageTarget
from prolu_tune.search.landscape import Landscape
from prolu_tune.search.records import TrialRecord, milestones
from prolu_tune.search.stopping import is_decision, should_stop

TARGET = CoverageTarget(5, 200, 16)
RANGES = {"relu+l1": (1e-4, 10.0)}
REPORTS = [k / 20 for k in range(1, 21)]


def course_to(end, *, falls=1.5, settling=0.2, until=1.0):
    """L0 that starts exp(falls) above `end` and settles exponentially, ending exactly there."""
    left = math.exp(-1 / settling)
    return [(f, end * math.exp(falls * (math.exp(-f / settling) - left) / (1 - left))) for f in REPORTS if f <= until + 1e-9]


def finished(number, coefficient, end, **course):
    return TrialRecord(number, ("relu+l1",), math.log(coefficient), "finished", l0=end, course=tuple(course_to(end, **course)))


def history(count=12, **course):
    """Finished trials on L0 = 30 c^-1.5, every second bin filled."""
    ends = np.exp(TARGET.log_centers[::2])[:count]
    return [finished(k, (30 / end) ** (1 / 1.5) * 0.05, end, **course) for k, end in enumerate(ends)]


def coefficient_of(end):
    return (30 / end) ** (1 / 1.5) * 0.05


def test_the_end_of_a_course_is_foretold_better_the_more_is_seen():
    model = CourseModel(history(), TARGET)
    spreads = []
    for fraction in (0.05, 0.1, 0.2, 0.4):
        mean, sd = model.predict(("relu+l1",), milestones(course_to(52.0, until=fraction)), fraction)
        assert abs(mean - math.log(52.0)) < 2.5 * sd + 0.02
        spreads.append(sd)
    assert spreads[-1] < 0.12
    assert spreads[-1] < spreads[0]


def test_with_nothing_finished_the_prediction_is_wide_and_leans_on_real_courses():
    mean, sd = CourseModel([], TARGET).predict(("relu+l1",), milestones([(0.05, 500.0), (0.1, 200.0)]), 0.1)
    assert sd > 0.6
    assert math.log(200) - 2.5 < mean < math.log(200)


def test_courses_that_rise_at_the_end_are_learned_too():
    rising = [
        TrialRecord(
            k, ("relu+l1",), -2.0, "finished", l0=end, course=tuple((f, end * math.exp(-0.4 * (1 - f))) for f in REPORTS)
        )
        for k, end in enumerate([8.0, 20.0, 35.0, 60.0, 90.0, 150.0, 25.0, 110.0])
    ]
    mean, sd = CourseModel(rising, TARGET).predict(
        ("relu+l1",), milestones([(0.2, 40 * math.exp(-0.32)), (0.4, 40 * math.exp(-0.24))]), 0.4
    )
    assert abs(mean - math.log(40)) < 0.1
    assert sd < 0.25


def test_a_trial_bound_for_a_filled_bin_is_stopped_and_one_for_an_open_bin_is_not():
    past = history()
    filled, still_open = float(np.exp(TARGET.log_centers[4])), float(np.exp(TARGET.log_centers[5]))
    for end, stop in ((filled, True), (still_open, False)):
        decision = should_stop(past, TARGET, "relu+l1", coefficient_of(end), course_to(end, until=0.4), 0.4, ranges=RANGES)
        assert decision.stop is stop, decision.reason
        assert decision.predicted_l0 == pytest.approx(end, rel=0.15)


def test_a_trial_far_outside_the_range_is_stopped_early():
    decision = should_stop(history(), TARGET, "relu+l1", 1e-4, course_to(9000.0, until=0.1), 0.1, ranges=RANGES)
    assert decision.stop
    assert "outside the range" in decision.reason


def test_before_five_percent_and_at_the_end_nothing_is_stopped():
    past = history()
    assert not should_stop(past, TARGET, "relu+l1", 0.05, [(0.02, 9000.0)], 0.02, ranges=RANGES).stop
    assert not should_stop(past, TARGET, "relu+l1", 0.05, course_to(9000.0), 1.0, ranges=RANGES).stop
    assert is_decision(0.4) and not is_decision(0.45)


def test_an_l0_of_zero_on_the_way_is_judged_and_not_an_error():
    course = [(0.05, 300.0), (0.1, 20.0), (0.15, 0.0), (0.2, 0.0)]
    decision = should_stop(history(), TARGET, "relu+l1", 5.0, course, 0.2, ranges=RANGES)
    assert decision.stop
    assert decision.predicted_l0 is not None and decision.predicted_l0 < 5


def undershooting(end, until=1.0):
    """Dips under its end, the deeper the lower the end is, and alike for all in the first 5 %, as short real courses do."""
    early = [(f, 180.0) for f in REPORTS if f <= 0.05]
    dip = 0.8 * math.log(200 / end) / math.log(40)
    late = [(f, end * math.exp(1.2 * math.exp(-f / 0.05) - dip * 4 * f * (1 - f))) for f in REPORTS if f > 0.05]
    return [(f, l0) for f, l0 in early + late if f <= until + 1e-9]


def undershooting_history():
    ends = np.exp(TARGET.log_centers)[4::2]
    return [
        TrialRecord(k, ("relu+l1",), math.log(coefficient_of(end)), "finished", l0=end, course=tuple(undershooting(end)))
        for k, end in enumerate(ends)
    ]


def test_where_courses_are_still_alike_every_end_is_possible_and_none_is_likelier_for_being_usual():
    model = CourseModel(undershooting_history(), TARGET)
    _, early_sd = model.predict(("relu+l1",), milestones(undershooting(8.0, until=0.05)), 0.05)
    mean, sd = model.predict(("relu+l1",), milestones(undershooting(40.0, until=0.4)), 0.4)
    assert early_sd > 1.0
    assert abs(mean - math.log(40.0)) < 0.1 and sd < 0.25


def test_a_trial_below_all_others_is_not_stopped_for_courses_that_rise_again_at_the_end():
    past = undershooting_history()
    for end in np.exp(TARGET.log_centers)[:4]:
        for fraction in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8):
            decision = should_stop(
                past, TARGET, "relu+l1", coefficient_of(end), undershooting(end, until=fraction), fraction, ranges=RANGES
            )
            assert not decision.stop, (end, fraction, decision.reason)


def stopped(number, end, fraction=0.2):
    course = tuple(course_to(end, until=fraction))
    return TrialRecord(number, ("relu+l1",), math.log(coefficient_of(end)), "stopped", course=course, fraction=fraction)


def test_bins_missed_by_stopped_trials_alone_are_not_given_up():
    span = {("relu+l1",): (math.log(1e-4), math.log(10.0))}
    past = history()
    sought = np.exp(TARGET.log_edges[5]) * np.linspace(0.96, 1.04, 7)  # about the edge of an open bin
    only_stopped = Landscape([*past, *(stopped(20 + k, end) for k, end in enumerate(sought))], TARGET, span)
    seen_through = Landscape([*past, *(finished(20 + k, coefficient_of(sought[k]), 34.6) for k in range(7))], TARGET, span)
    assert 5 not in only_stopped.unreachable(("relu+l1",))
    assert 5 in seen_through.open_bins(("relu+l1",)) or 5 in seen_through.unreachable(("relu+l1",))


def test_after_many_stops_in_a_row_one_trial_is_trained_to_its_end_to_check_them():
    past = history()
    end = float(np.exp(TARGET.log_edges[5])) * 0.965  # most likely in a filled bin, perhaps in the open one
    row = [stopped(20 + k, end) for k in range(8)]
    decisions = [
        should_stop(
            [*past, *row[:count]], TARGET, "relu+l1", coefficient_of(end), course_to(end, until=0.4), 0.4, ranges=RANGES
        )
        for count in range(9)
    ]
    assert [decision.stop for decision in decisions[:6]] == [True] * 6
    checks = [decision for decision in decisions[6:] if not decision.stop]
    assert len(checks) == 1 and "to check the stops before it" in checks[0].reason


def test_the_decision_depends_on_nothing_but_its_arguments():
    past = history()
    course = course_to(33.0, until=0.2)
    first = should_stop(past, TARGET, "relu+l1", 0.04, course, 0.2, ranges=RANGES)
    landscape = Landscape(past, TARGET, {("relu+l1",): (math.log(1e-4), math.log(10.0))})
    landscape.should_stop(("relu+l1",), -1.0, course_to(80.0, until=0.4), 0.4)
    again = landscape.should_stop(("relu+l1",), math.log(0.04), course, 0.2)
    assert first == again == should_stop(list(past), TARGET, "relu+l1", 0.04, list(course), 0.2, ranges=RANGES)


def test_an_architecture_without_a_range_is_refused():
    with pytest.raises(ValueError, match="ranges must hold every architecture; 'relu\\+sqrt_l1'"):
        should_stop([], TARGET, "relu+sqrt_l1", 0.1, [(0.1, 50.0)], 0.1, ranges=RANGES)
