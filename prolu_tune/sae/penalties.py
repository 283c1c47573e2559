"""Sparsity penalties, each `f(acts, eps) -> one number per row`; the loss takes their mean over the batch.

To add one: write the function here and its name into `config.names.PENALTIES`. Reported metrics are not these but
those of `metrics`, which carry no eps.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from prolu_tune.config.names import PENALTIES

Penalty = Callable[[Tensor, float], Tensor]


def l1(acts: Float[Tensor, "batch d_sae"], eps: float) -> Float[Tensor, " batch"]:
    """Returns the sum of the activations, which are never negative."""
    return acts.sum(1)


def sqrt_l1(acts: Float[Tensor, "batch d_sae"], eps: float) -> Float[Tensor, " batch"]:
    """Returns the sum of sqrt(acts + eps); eps keeps the gradient at 0 finite."""
    return torch.sqrt(acts + eps).sum(1)


def penalty(name: str) -> Penalty:
    """Returns the function of this name.

    Raises:
        ValueError: if the name is not in `config.names.PENALTIES`.
    """
    if name not in PENALTIES:
        raise ValueError(f"{name!r} is not a penalty; choose one of {', '.join(PENALTIES)}")
    return globals()[name]
