"""What a trial does step by step, with nothing left open: widths, steps and windows as plain numbers.

Shortened runs scale warm-up, resampling, firing window and cooldown by one factor: batches over 98,304.
"""

import math
from dataclasses import dataclass

from prolu_tune.config.trial import TrialConfig
from prolu_tune.errors import InputError

FULL_BATCHES = 98_304
"""Batches of the post's runs: about 400M tokens in batches of 4,096."""
DEFAULT_EXPANSION_FACTOR = 16
MIN_RESAMPLING_TOKENS = 8_192
"""A resampling reads at least this many activations, however short the run."""


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """The numbers a trainer needs; every step counts from 0, every window is in steps."""

    d_in: int
    d_sae: int
    num_batches: int
    """Batches read from the stream, those consumed by resampling included."""
    num_steps: int
    """Batches trained on."""
    warmup_steps: int
    cooldown_start: int
    cooldown_steps: int
    resampling_steps: tuple[int, ...]
    """Ascending; before training step s the dead latents are replaced."""
    resampling_batches: int
    """Batches consumed at each resampling."""
    window_steps: int
    log_every: int
    adam_eps: float


def scaled(full: int, factor: float, *, least: int = 1) -> int:
    """Returns a full-length number of steps scaled to a shorter run, at least `least`."""
    return max(least, round(full * factor))


def plan_trial(config: TrialConfig, *, d_in: int) -> TrialPlan:
    """Returns the steps of a trial on a hook of width d_in.

    Raises:
        InputError: if the widths disagree or the run is too short for its own schedule.
    """
    sae, training, resampling = config.sae, config.training, config.resampling
    if sae.d_in is not None and sae.d_in != d_in:
        raise InputError(
            f"sae.d_in is {sae.d_in}, but {config.activations.hook_name} is {d_in} wide; remove sae.d_in or correct it"
        )
    d_sae = sae.d_sae if sae.d_sae is not None else (sae.expansion_factor or DEFAULT_EXPANSION_FACTOR) * d_in
    num_batches = training.num_tokens // training.batch_size
    if num_batches < 1:
        raise InputError(
            f"training.num_tokens ({training.num_tokens}) is less than one training.batch_size ({training.batch_size}); "
            "raise num_tokens"
        )
    factor = num_batches / FULL_BATCHES
    tokens = resampling.num_tokens or scaled(819_200, factor * training.batch_size / 4096, least=MIN_RESAMPLING_TOKENS)
    resampling_batches = math.ceil(tokens / training.batch_size)
    steps = resampling.steps if resampling.steps is not None else (scaled(25_000, factor), scaled(50_000, factor))
    num_steps = num_batches - len(steps) * resampling_batches
    if num_steps < 1 or list(steps) != sorted(set(steps)) or (steps and steps[-1] >= num_steps):
        raise InputError(
            f"resampling at steps {list(steps)} with {resampling_batches} batches each does not fit into {num_batches}; "
            "raise training.num_tokens, or set resampling.steps to ascending steps within the run ([] for none)"
        )
    return TrialPlan(
        d_in=d_in,
        d_sae=d_sae,
        num_batches=num_batches,
        num_steps=num_steps,
        warmup_steps=training.warmup_steps if training.warmup_steps is not None else scaled(2_000, factor),
        cooldown_start=training.cooldown_start if training.cooldown_start is not None else scaled(75_000, factor),
        cooldown_steps=training.cooldown_steps if training.cooldown_steps is not None else scaled(20_000, factor),
        resampling_steps=tuple(steps),
        resampling_batches=resampling_batches,
        window_steps=resampling.window_steps or scaled(12_500, factor),
        log_every=training.log_every or max(1, num_steps // 100),
        adam_eps=training.adam_eps if training.adam_eps is not None else d_in * 1e-8,
    )
