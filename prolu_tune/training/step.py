"""Loss and gradients of one batch, dense: every latent of every token takes part."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prolu_tune import metrics
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.sae.penalties import penalty


class StepStats(NamedTuple):
    """What one batch showed, left on the device: nothing here waits for it."""

    loss: Float[Tensor, ""]
    squared_error: Float[Tensor, ""]
    """Mean over the batch of the squared error summed over d_in."""
    l1: Float[Tensor, ""]
    sqrt_l1: Float[Tensor, ""]
    fired: Int[Tensor, " d_sae"]
    """On how many tokens of the batch each latent was active."""


def dense_gradients(sae: SparseAutoencoder, x: Float[Tensor, "batch d_in"], *, l1_coefficient: float) -> StepStats:
    """Returns the batch's statistics and leaves the gradients of the loss in `.grad` of the four parameters.

    Args:
        sae: its configuration says which penalty.
        x: tokens that `sae.normalize` has rescaled.
        l1_coefficient: weight of the penalty against the squared error summed over d_in.
    """
    acts = sae.encode_normalized(x)
    squared_error = metrics.squared_error(sae.decode_normalized(acts), x).mean()
    sparsity = penalty(sae.config.penalty)(acts, sae.config.sqrt_l1_eps).mean()
    loss = squared_error + l1_coefficient * sparsity
    sae.zero_grad(set_to_none=True)
    loss.backward()
    with torch.no_grad():
        return StepStats(
            loss=loss.detach(),
            squared_error=squared_error.detach(),
            l1=metrics.l1(acts).mean(),
            sqrt_l1=metrics.sqrt_l1(acts).mean(),
            fired=metrics.firing_counts(acts),
        )
