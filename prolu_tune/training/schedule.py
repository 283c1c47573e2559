"""The learning rate at every step, as a pure function of the plan."""

from prolu_tune.config.resolve import TrialPlan


def lr_factor(step: int, *, plan: TrialPlan, cooldown_factor: float) -> float:
    """Returns what the peak learning rate is multiplied by at a training step, counted from 0.

    Linear from 0 to 1 over `warmup_steps` from the start and again from each resampling; linear from 1 to
    `cooldown_factor` over `cooldown_steps` from `cooldown_start`, then constant. Where both apply they multiply.
    """
    restart = max((start for start in plan.resampling_steps if start <= step), default=0)
    warm = min(1.0, (step - restart) / plan.warmup_steps) if plan.warmup_steps else 1.0
    if step < plan.cooldown_start:
        return warm
    cooled = min(1.0, (step - plan.cooldown_start) / plan.cooldown_steps) if plan.cooldown_steps else 1.0
    return warm * (1 - (1 - cooldown_factor) * cooled)


def window_start(step: int, *, plan: TrialPlan) -> int:
    """Returns the step from which firings are counted for the window that a training step belongs to.

    A window ends before each resampling and at the end of the run, is `window_steps` long, and never reaches back
    over the resampling before it: a latent's firings before it was replaced say nothing about it.
    """
    end = min((s for s in plan.resampling_steps if s > step), default=plan.num_steps)
    previous = max((s for s in plan.resampling_steps if s <= step), default=0)
    return max(end - plan.window_steps, previous)
