"""The sparse gradient step of a device, if it has one, and whether it can be trusted there."""

import copy
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from prolu_tune.config.trial import TrainingConfig
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.training.choice import CPU, CUDA, Crossover
from prolu_tune.training.numerics import seeded_generator
from prolu_tune.training.optimizer import Adam, update
from prolu_tune.training.sparse import THRESHOLDS, SparseStep
from prolu_tune.training.step import StepStats, dense_gradients

_CHECKED_TOKENS = 16
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""How far apart two gradients may be, as a share of their length: an entry at the gate's edge may open in one of the two."""


class GradientStep(Protocol):
    """What `dense_gradients` is too, apart from `release`."""

    def __call__(self, sae: SparseAutoencoder, x: Tensor, *, l1_coefficient: float) -> StepStats:
        """Returns the batch's statistics and leaves the gradients of the loss in `.grad` of the four parameters."""
        ...

    def release(self) -> None:
        """Gives its memory back until the next step."""
        ...


class SparsePath(NamedTuple):
    """A sparse step, when it pays, the update of the weights that goes with it, and whether to check both where they run."""

    gradients: GradientStep
    crossover: Crossover
    update: Callable[[SparseAutoencoder, Adam], None] = update
    check_first: bool = False


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
        from prolu_tune.training.triton_step import TritonStep, fused_update
    except ModuleNotFoundError:
        return None
    return SparsePath(TritonStep(), CUDA, fused_update, check_first=True)


@torch.no_grad()
def complaint_about(path: SparsePath, sae: SparseAutoencoder, training: TrainingConfig) -> str:
    """Takes one step sparsely and one densely from the same weights; returns how they differ, "" if by rounding only.

    For kernels that are compiled for the GPU at hand, which is hardly the one they were tested on. Leaves `sae` as it is.
    """
    x = torch.randn(_CHECKED_TOKENS, sae.d_in, generator=seeded_generator("check of the sparse step"))
    x = sae.normalize(x.to(sae.b_dec.device)).x
    ours, plain = copy.deepcopy(sae), copy.deepcopy(sae)
    pre = (x - sae.b_dec) @ sae.W_enc
    # The largest hundredth is active: a fresh autoencoder's half would be more than the sparse step has room for.
    bias = -pre.flatten().sort().values[-max(1, pre.numel() // 100) - 1]
    for each in (ours, plain):
        each.b_enc.fill_(bias)
    before = [parameter.clone() for parameter in ours.parameters()]
    try:
        for gradients, each in ((path.gradients, ours), (dense_gradients, plain)):
            with torch.enable_grad():
                gradients(each, x, l1_coefficient=training.l1_coefficient)
        for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
            if not _are_close(p.grad, q.grad, _ROUNDING[sae.operands]):
                return f"its gradient of {name} is not the dense step's"
            assert q.grad is not None
            p.grad = q.grad.clone()  # an update may change its gradients
        for change, each in ((path.update, ours), (update, plain)):
            change(each, Adam(each, training, eps=1e-8))
        for (name, p), q, old in zip(ours.named_parameters(), plain.parameters(), before, strict=True):
            if not _are_close(p - old, q - old, _ROUNDING[torch.float32]):
                return f"its update of {name} is not Adam's"
    except Exception as error:  # a compiler's, a driver's: whatever it is, the dense step is there
        return f"it fails here with {type(error).__name__}: {error}"
    finally:
        path.gradients.release()
    return ""


def _are_close(got: Tensor | None, expected: Tensor | None, share: float) -> bool:
    assert got is not None
    assert expected is not None
    return bool((got - expected).norm() <= share * expected.norm())
