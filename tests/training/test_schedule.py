from dataclasses import replace

import pytest

from prolu_tune.config.resolve import TrialPlan, plan_trial
from prolu_tune.config.trial import TrialConfig
from prolu_tune.training.schedule import lr_factor, window_start


def _plan(**changes) -> TrialPlan:
    return replace(plan_trial(TrialConfig(), d_in=768), **changes)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.0),
        (1, 1 / 2000),
        (1000, 0.5),
        (1999, 1999 / 2000),
        (2000, 1.0),
        (24_999, 1.0),
        (25_000, 0.0),
        (25_500, 0.25),
        (27_000, 1.0),
        (50_000, 0.0),
        (51_000, 0.5),
        (52_000, 1.0),
        (74_999, 1.0),
        (75_000, 1.0),
        (80_000, 0.775),
        (85_000, 0.55),
        (95_000, 0.1),
        (97_903, 0.1),
    ],
)
def test_the_posts_schedule_has_these_values(step, factor):
    assert lr_factor(step, plan=_plan(), cooldown_factor=0.1) == pytest.approx(factor, rel=1e-12)


def test_rewarming_within_the_cooldown_multiplies():
    plan = _plan(resampling_steps=(85_000,))
    assert lr_factor(86_000, plan=plan, cooldown_factor=0.1) == pytest.approx(0.5 * (1 - 0.9 * 11 / 20))


def test_no_warmup_and_no_cooldown_steps_are_jumps():
    plan = _plan(warmup_steps=0, cooldown_steps=0, resampling_steps=())
    assert [lr_factor(s, plan=plan, cooldown_factor=0.2) for s in (0, 74_999, 75_000)] == [1, 1, pytest.approx(0.2)]


def test_windows_end_at_resamplings_and_at_the_end_of_the_run():
    plan = _plan()
    assert plan.num_steps == 97_904
    starts = [window_start(step, plan=plan) for step in (0, 24_999, 25_000, 49_999, 50_000, 97_903)]
    assert starts == [12_500, 12_500, 37_500, 37_500, 85_404, 85_404]


def test_a_window_longer_than_the_distance_stops_at_the_resampling_before():
    plan = _plan(resampling_steps=(100, 150), window_steps=120, num_steps=400)
    assert [window_start(step, plan=plan) for step in (0, 99, 100, 149, 150, 399)] == [0, 0, 100, 100, 280, 280]
