"""The gates between encoder and decoder, each `f(pre, bias) -> acts`.

`pre` is the encoder product without bias. To add one: write the function here and its name into
`config.names.NONLINEARITIES`. The ProLU pair has synthetic gradients: what flows back is not the derivative.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from prolu_tune.config.names import NONLINEARITIES

Nonlinearity = Callable[[Tensor, Tensor], Tensor]


def relu(pre: Float[Tensor, "batch d_sae"], bias: Float[Tensor, " d_sae"]) -> Float[Tensor, "batch d_sae"]:
    """Returns max(pre + bias, 0), with its true gradient."""
    return torch.relu(pre + bias)


def prolu_relu(pre: Float[Tensor, "batch d_sae"], bias: Float[Tensor, " d_sae"]) -> Float[Tensor, "batch d_sae"]:
    """Returns pre where pre + bias > 0 and pre > 0, else 0; the gradient g at an open gate goes to pre and to bias.

    Source: Taggart 2024, ProLU with the ReLU's derivatives standing in for its own.
    """
    return _ProluRelu.apply(pre, bias)  # pyright: ignore[reportReturnType]  # torch types Function.apply as Any | None


def prolu_ste(pre: Float[Tensor, "batch d_sae"], bias: Float[Tensor, " d_sae"]) -> Float[Tensor, "batch d_sae"]:
    """Returns pre where pre + bias > 0 and pre > 0, else 0; at an open gate pre gets g * (1 + pre) and bias g * pre.

    Source: Taggart 2024, straight-through estimate of the gate.
    """
    return _ProluSte.apply(pre, bias)  # pyright: ignore[reportReturnType]  # torch types Function.apply as Any | None


def nonlinearity(name: str) -> Nonlinearity:
    """Returns the function of this name.

    Raises:
        ValueError: if the name is not in `config.names.NONLINEARITIES`.
    """
    if name not in NONLINEARITIES:
        raise ValueError(f"{name!r} is not a nonlinearity; choose one of {', '.join(NONLINEARITIES)}")
    return globals()[name]


def _gated(pre: Tensor, bias: Tensor) -> Tensor:
    # pre + bias > 0 and pre > 0 is pre > max(-bias, 0) in IEEE arithmetic too: one comparison over the big array, not two.
    return torch.where(pre > torch.relu(-bias), pre, 0)


def _through_gate(grad_acts: Tensor, acts: Tensor) -> Tensor:
    # acts > 0 exactly where the gate is open, so pre need not be kept. This selects instead of multiplying: a gradient
    # of inf at a closed gate must give 0, not NaN.
    return torch.ops.aten.threshold_backward(grad_acts, acts, 0)


class _ProluRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre: Tensor, bias: Tensor) -> Tensor:
        acts = _gated(pre, bias)
        ctx.save_for_backward(acts)
        return acts

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (acts,) = ctx.saved_tensors
        grad = _through_gate(grad_outputs[0], acts)
        return grad, grad.sum(0)


class _ProluSte(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pre: Tensor, bias: Tensor) -> Tensor:
        acts = _gated(pre, bias)
        ctx.save_for_backward(acts)
        return acts

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (acts,) = ctx.saved_tensors
        grad = _through_gate(grad_outputs[0], acts)
        grad_times_pre = grad * acts
        return grad.add_(grad_times_pre), grad_times_pre.sum(0)
