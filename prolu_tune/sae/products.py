"""The two matrix products of the autoencoder, in float32 or with bfloat16 operands.

With bfloat16 only the operands are rounded: sums, results, weights and their gradients stay float32 (on a GPU; the CPU
has no such product and rounds the result as well).
"""

import torch
from jaxtyping import Float
from torch import Tensor


def encoder_product(
    x: Float[Tensor, "batch d_in"],
    b_dec: Float[Tensor, " d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    operands: torch.dtype = torch.float32,
) -> Float[Tensor, "batch d_sae"]:
    """Returns (x - b_dec) @ W_enc."""
    return _EncoderProduct.apply(x, b_dec, W_enc, operands)  # pyright: ignore[reportReturnType]  # apply is Any | None


def decoder_product(
    acts: Float[Tensor, "batch d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    operands: torch.dtype = torch.float32,
) -> Float[Tensor, "batch d_in"]:
    """Returns acts @ W_dec + b_dec."""
    if operands == torch.bfloat16:
        return _RoundedProduct.apply(acts, W_dec) + b_dec  # pyright: ignore[reportOperatorIssue]  # apply is Any | None
    return torch.addmm(b_dec, acts, W_dec)


def _matmul(a: Tensor, b: Tensor, operands: torch.dtype) -> Tensor:
    """Returns a @ b in the master dtype, the operands rounded to bfloat16 if so asked."""
    if operands != torch.bfloat16:
        return a @ b
    if a.is_cuda:
        return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
    return (a.bfloat16() @ b.bfloat16()).float()


class _EncoderProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, b_dec: Tensor, W_enc: Tensor, operands: torch.dtype) -> Tensor:
        # Centred before rounding to bfloat16: activations have a mean much larger than what varies.
        centred = x - b_dec
        ctx.save_for_backward(centred, W_enc)
        ctx.operands = operands
        return _matmul(centred, W_enc, operands)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        (grad_pre,) = grad_outputs
        centred, W_enc = ctx.saved_tensors
        grad_W_enc = _matmul(centred.T, grad_pre, ctx.operands)
        if ctx.needs_input_grad[0]:
            grad_x = _matmul(grad_pre, W_enc.T, ctx.operands)
            return grad_x, -grad_x.sum(0), grad_W_enc, None
        # b_dec needs only the sum over the batch: summing first saves a fifth of the step's operations.
        return None, -(W_enc @ grad_pre.sum(0)), grad_W_enc, None


class _RoundedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, acts: Tensor, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(acts, W_dec)
        return _matmul(acts, W_dec, torch.bfloat16)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (grad_recon,) = grad_outputs
        acts, W_dec = ctx.saved_tensors
        return _matmul(grad_recon, W_dec.T, torch.bfloat16), _matmul(acts.T, grad_recon, torch.bfloat16)
