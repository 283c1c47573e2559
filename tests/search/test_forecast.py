"""The forecast of a coverage sweep: in proportion to what is asked, within the budget, and the same every time."""

import pytest

from prolu_tune.search.coverage import CoverageTarget
from prolu_tune.search.forecast import forecast
from prolu_tune.search.problems import usual_problem
from prolu_tune.search.space import SearchSpace


def space(num_architectures=1, **search):
    names = ("relu+l1", "relu+sqrt_l1", "prolu_relu+l1", "prolu_relu+sqrt_l1", "prolu_ste+l1", "prolu_ste+sqrt_l1")
    return SearchSpace.model_validate(
        {
            "name": "f",
            "architectures": {name: {"l1_coefficient": {"low": 1e-3, "high": 100}} for name in names[:num_architectures]},
            "search": {"kind": "coverage", "l0": [10, 80], "bins": 5, "max_trials": 200, **search},
        }
    )


def test_the_same_space_has_the_same_forecast_and_it_is_a_little_over_a_training_a_bin():
    told = forecast(space())
    assert told == forecast(space())
    assert 4.5 < told.cost.low <= told.cost.middle <= told.cost.high < 10
    assert told.cost.middle <= told.trials.middle and told.filled.middle == 1.0


def test_more_architectures_factors_and_bins_than_are_simulated_cost_in_proportion():
    three = forecast(space(3, bins=2))
    six = forecast(space(6, bins=2).model_copy(update={"seeds": (0, 1)}))
    assert six.cost.middle == pytest.approx(4 * three.cost.middle)


def test_the_budget_is_never_exceeded_and_the_bins_left_open_are_told():
    told = forecast(space(max_trials=3))
    assert told.trials.high <= 3 and told.cost.high <= 3
    assert told.filled.high < 1.0


def test_without_early_stopping_a_trial_costs_a_whole_training_unless_it_diverges():
    told = forecast(space(early_stopping=False))
    assert told.stopped.high == 0
    assert told.cost.middle > 0.85 * told.trials.middle


@pytest.mark.parametrize(("low", "high", "bins"), [(5, 200, 16), (50, 100, 4), (0.5, 3000, 30)])
def test_usual_curves_lead_to_nearly_every_bin_of_any_target(low, high, bins):
    target = CoverageTarget(low, high, bins)
    ranges = dict.fromkeys("abcdef", (1e-5, 1.0))
    reached = [
        len(problem.reachable(name, target, width=0.003)) / bins
        for problem in (usual_problem(seed, ranges, target) for seed in range(3))
        for name in ranges
    ]
    # Some of the curves get flat near the upper end of the target.
    assert min(reached) >= 0.5 and sum(reached) / len(reached) > 0.9
