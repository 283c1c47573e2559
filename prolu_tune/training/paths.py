"""The sparse gradient step of a device, if it has one."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.training.choice import CPU, CUDA, Crossover
from prolu_tune.training.sparse import THRESHOLDS, SparseStep
from prolu_tune.training.step import StepStats


class GradientStep(Protocol):
    """What `dense_gradients` is too, apart from `release`."""

    def __call__(self, sae: SparseAutoencoder, x: Tensor, *, l1_coefficient: float) -> StepStats:
        """Returns the batch's statistics and leaves the gradients of the loss in `.grad` of the four parameters."""
        ...

    def release(self) -> None:
        """Gives its memory back until the next step."""
        ...


class SparsePath(NamedTuple):
    """A sparse step and when it pays."""

    gradients: GradientStep
    crossover: Crossover


def sparse_path(sae: SparseAutoencoder, device: torch.device) -> SparsePath | None:
    """Returns the sparse step of this device for this autoencoder, or None: then it is trained densely throughout.

    None for a nonlinearity without a threshold, for a torch without MKL (no products with sparse operands on the CPU),
    and for a GPU without Triton.
    """
    if sae.config.nonlinearity not in THRESHOLDS:
        return None
    if device.type == "cpu":
        return SparsePath(SparseStep(), CPU) if torch.backends.mkl.is_available() else None
    try:
        # On GPU machines only: nothing else needs Triton.
        from prolu_tune.training.triton_step import TritonStep
    except ModuleNotFoundError:
        return None
    return SparsePath(TritonStep(), CUDA)
