"""Loss and gradients of one batch, dense: every latent of every token takes part."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prolu_tune import metrics
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.sae.penalties import penalty

_BLOCK_ENTRIES = 2**23
"""On the CPU a batch is worked through in parts of at most this many entries of (tokens, d_sae), 32 MB an array."""


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
    sae.zero_grad(set_to_none=True)
    num_parts = 1 if x.is_cuda else -(-len(x) * sae.d_sae // _BLOCK_ENTRIES)
    parts = [_add_gradients(sae, part, l1_coefficient=l1_coefficient, batch=len(x)) for part in x.tensor_split(num_parts)]
    return parts[0] if num_parts == 1 else StepStats(*(torch.stack(values).sum(0) for values in zip(*parts, strict=True)))


def _add_gradients(sae: SparseAutoencoder, x: Float[Tensor, "part d_in"], *, l1_coefficient: float, batch: int) -> StepStats:
    """Returns what some tokens contribute to the means over the batch, and adds what they contribute to the gradients."""
    acts = sae.encode_normalized(x)
    squared_error = metrics.squared_error(sae.decode_normalized(acts), x).sum() / batch
    sparsity = penalty(sae.config.penalty)(acts, sae.config.sqrt_l1_eps).sum() / batch
    loss = squared_error + l1_coefficient * sparsity
    loss.backward()
    with torch.no_grad():
        return StepStats(
            loss=loss.detach(),
            squared_error=squared_error.detach(),
            l1=metrics.l1(acts).sum() / batch,
            sqrt_l1=metrics.sqrt_l1(acts).sum() / batch,
            fired=metrics.firing_counts(acts),
        )
