"""Small sweeps, and formulas in place of training: quick to run, and any wrong step changes the last bits."""

import math
from typing import Any

from prolu_tune.config.trial import TrialConfig
from prolu_tune.search.space import SearchSpace

NUM_STEPS = 6
D_IN = 2
COMMON: dict[str, Any] = {
    "sae": {"d_sae": 2},
    "training": {"num_tokens": NUM_STEPS * 16, "batch_size": 16},
    "resampling": {"steps": []},
    "resources": {"max_failures": 20},
}
DIVERGES_ABOVE = 90.0
FAILS_BELOW = 0.002


def _space(name: str, **parts: Any) -> SearchSpace:
    return SearchSpace.model_validate({"name": name, **COMMON, **parts})


def _coverage(bins: int, max_trials: int, window: int) -> dict[str, Any]:
    ranges = {"l1_coefficient": {"low": 0.01, "high": 80.0}}
    search = {"kind": "coverage", "l0": [10, 80], "bins": bins, "max_trials": max_trials, "window": window}
    return {"architectures": {"relu+l1": ranges, "prolu_ste+l1": ranges}, "search": search}


SPACES: dict[str, SearchSpace] = {
    "grid": _space(
        "grid",
        architectures={"relu+l1": {"l1_coefficient": [0.5, 2.0]}, "prolu_ste+l1": {"l1_coefficient": [0.5, 2.0]}},
    ),
    # One trial diverges, one meets an error that would come again.
    "troubled": _space(
        "troubled",
        architectures={"relu+l1": {"l1_coefficient": [0.001, 1.0, 100.0]}, "prolu_relu+sqrt_l1": {"l1_coefficient": [1.0]}},
    ),
    "coverage": _space("coverage", **_coverage(bins=3, max_trials=7, window=2)),
    "wide": _space("wide", **_coverage(bins=2, max_trials=6, window=3)),
}


def first_state(config: TrialConfig) -> float:
    """Returns the state of a training before its first step."""
    text = f"{config.sae.architecture}/{config.training.l1_coefficient!r}/{config.seed}"
    return (sum(ord(c) * 37**i for i, c in enumerate(text)) % 99991 + 0.5) / 99992


def next_state(x: float) -> float:
    """Returns the state after one more step; a chaotic map, so that no error ever heals."""
    return 3.99 * x * (1.0 - x)


def final_l0(config: TrialConfig) -> float:
    """Returns the L0 that a training ends with: a power law, steeper for the second architecture."""
    slope, scale = (1.2, 40.0) if config.sae.nonlinearity == "relu" else (1.8, 15.0)
    return min(400.0, scale * config.training.l1_coefficient**-slope)


def row_of(config: TrialConfig, step: int, x: float) -> dict[str, float]:
    """Returns the row of metrics after a step."""
    diverged = config.training.l1_coefficient > DIVERGES_ABOVE and step == NUM_STEPS - 1
    l0 = final_l0(config) * (2.0 - step / NUM_STEPS)
    return {"step": step, "tokens": step * 16, "loss": math.nan if diverged else x, "l0": l0}


def evaluation(config: TrialConfig, weight: float) -> dict[str, float]:
    """Returns held-out metrics of a trained autoencoder."""
    l0 = final_l0(config)
    # Later trials dominate earlier ones, so that an interrupted sweep's frontier is not that of the whole.
    better = 1.0 if config.sae.nonlinearity == "relu" else 0.05
    return {"l0": l0, "ce_degradation": better * (1.0 + weight) / l0, "mse": weight, "fvu": weight / 2}
