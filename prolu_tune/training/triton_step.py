"""Loss and gradients of one batch on a GPU, touching active entries only, and Adam in one pass; what is meant: `step`.

Roofline at d_in 768, d_sae 12,288, batch 4,096, L0 64 (262k active entries), on an H100 at 700 TFLOP/s in bfloat16, 3 TB/s
of memory, and 5.5 TB/s of L2 cache, in which W_dec, x and the gradient at the reconstruction stay. NOT MEASURED:
no GPU was at hand; the kernels are tested under Triton's interpreter and compiled for sm_90.

| part | operations | bytes | ms |
| --- | --- | --- | --- |
| weights to bfloat16, encoder product to float32 `pre` | 77 GFLOP | 115 MB + 200 MB written | 0.11 + 0.07 |
| `count_active` and `compact_active`, each reading `pre` | - | 400 MB | 0.13 |
| stable sort of 262k to 1.5M short keys | - | 30 MB | 0.05 |
| `decode`, rows of W_dec gathered | 0.4 GFLOP | 400 MB from L2 | 0.07 |
| `latent_gradients`, two rows gathered per entry, both gradients written | 1.2 GFLOP | 800 MB from L2, 76 MB written | 0.17 |
| `update_decoder`, `update_matrix` | - | 530 MB | 0.18 |
| sum | 79 GFLOP | | 0.78: 5.2M tokens/s |

What this leaves on the table: a gate in the epilogue of the product would save most of the 0.2 ms that `pre` costs.
A latent that fires on most tokens is one program's work and can be the last to end.
"""

import math
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]  # there on GPU machines only
from jaxtyping import Float
from torch import Tensor

from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.sae.penalties import penalty
from prolu_tune.training import triton_kernels
from prolu_tune.training.choice import CUDA
from prolu_tune.training.optimizer import Adam
from prolu_tune.training.step import StepStats, dense_gradients

# What Triton's decorators make of a function is opaque to type checkers.
kernels: Any = triton_kernels

# Launch shapes are part of the numerics: fixed, never tuned by time.
_SCAN = {"BLOCK": 1024, "num_warps": 4}
_GATHER = {"TILE": 8, "num_warps": 4}
_MATRIX = {"ROWS": 32, "COLUMNS": 32, "num_warps": 4}
_LEAST_CAPACITY = 2**16
_NONLINEARITIES = {"relu": kernels.RELU, "prolu_relu": kernels.PROLU_RELU, "prolu_ste": kernels.PROLU_STE}
_PENALTIES = {"l1": kernels.L1, "sqrt_l1": kernels.SQRT_L1}


class TritonStep:
    """Called like `dense_gradients`, with the same results to rounding.

    Holds one (batch, d_sae) array and room for twice as many entries as the sparse step is worth while for. Should a
    batch have more, it is done again densely.
    """

    def __init__(self, *, capacity: int | None = None) -> None:
        """Takes no memory before the first step; capacity is the number of entries there is room for, None: as above."""
        self._capacity = capacity
        self.release()

    def release(self) -> None:
        """Gives the arrays back; the next step takes new ones."""
        self._pre = torch.empty(0)
        self._grad_W_enc = torch.empty(0)

    @torch.no_grad()
    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "batch d_in"], *, l1_coefficient: float) -> StepStats:
        """Returns the batch's statistics and leaves the gradients of the loss in `.grad` of the four parameters.

        The host waits until the active entries have been counted, which is before the gradients are done: the device
        always has work queued.

        Args:
            sae: its configuration says which nonlinearity and penalty, its operands the precision of what is gathered.
            x: tokens that `sae.normalize` has rescaled, on the autoencoder's device.
            l1_coefficient: weight of the penalty against the squared error summed over d_in.
        """
        batch, device = len(x), x.device
        capacity = self._capacity or _capacity(batch * sae.d_sae)
        centred = x - sae.b_dec
        pre = self._product(sae, centred)
        gate = _NONLINEARITIES[sae.config.nonlinearity]
        counts = torch.empty(batch, dtype=torch.int32, device=device)
        kernels.count_active[(batch,)](pre, sae.b_enc, counts, sae.d_sae, NONLINEARITY=gate, **_SCAN)
        by_token = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
        num_active = _Count(by_token[-1:])
        stats = self._gradients(sae, centred, pre, by_token, capacity=capacity, l1_coefficient=l1_coefficient)
        if num_active.wait() > capacity:
            with torch.enable_grad():
                return dense_gradients(sae, x, l1_coefficient=l1_coefficient)
        return stats

    def _product(self, sae: SparseAutoencoder, centred: Tensor) -> Tensor:
        if self._pre.shape != (len(centred), sae.d_sae) or self._pre.device != centred.device:
            self._pre = torch.empty(len(centred), sae.d_sae, device=centred.device)
        if sae.operands == torch.bfloat16 and centred.is_cuda:
            operands = (centred.bfloat16(), sae.W_enc.bfloat16())
            return torch.mm(*operands, out_dtype=torch.float32, out=self._pre)
        return torch.mm(centred, sae.W_enc, out=self._pre)

    def _gradients(
        self, sae: SparseAutoencoder, centred: Tensor, pre: Tensor, by_token: Tensor, *, capacity: int, l1_coefficient: float
    ) -> StepStats:
        batch, (d_sae, d_in), device = len(centred), sae.W_dec.shape, centred.device
        eps, block = sae.config.sqrt_l1_eps, triton.next_power_of_2(d_in)
        shape = {"NONLINEARITY": _NONLINEARITIES[sae.config.nonlinearity], "PENALTY": _PENALTIES[sae.config.penalty]}
        # Entries that are none have latent d_sae and sort behind all others.
        latents = torch.full((capacity,), d_sae, dtype=torch.int32, device=device)
        tokens = torch.empty_like(latents)
        acts = torch.empty(capacity, device=device)
        token_sums = torch.empty(batch, 4, device=device)
        kernels.compact_active[(batch,)](
            pre, sae.b_enc, by_token, latents, tokens, acts, token_sums, d_sae, capacity, eps, **shape, **_SCAN
        )  # fmt: skip
        W_dec, centred_operand = sae.W_dec.to(sae.operands), centred.to(sae.operands)
        grad_recon = torch.empty_like(centred_operand)
        kernels.decode[(batch,)](
            by_token, latents, acts, W_dec, centred, grad_recon, token_sums, d_in, capacity, 2 / batch,
            BLOCK=block, **_GATHER,
        )  # fmt: skip
        keys = latents.to(torch.int16) if d_sae <= torch.iinfo(torch.int16).max else latents
        ordered, order = keys.sort(stable=True)
        by_latent = torch.searchsorted(ordered, torch.arange(d_sae + 1, dtype=ordered.dtype, device=device))
        if self._grad_W_enc.shape != (d_sae, d_in):
            self._grad_W_enc = torch.empty(d_sae, d_in, device=device)
        grad_W_dec = torch.empty_like(sae.W_dec) if sae.W_dec.grad is None else sae.W_dec.grad
        grad_b_enc, grad_pre_sums = torch.empty_like(sae.b_enc), torch.empty_like(sae.b_enc)
        kernels.latent_gradients[(d_sae,)](
            by_latent, order, tokens, acts, W_dec, grad_recon, centred_operand, grad_W_dec, self._grad_W_enc,
            grad_b_enc, grad_pre_sums, d_in, l1_coefficient / batch, eps, **shape, BLOCK=block, **_GATHER,
        )  # fmt: skip
        sae.W_dec.grad, sae.b_enc.grad, sae.W_enc.grad = grad_W_dec, grad_b_enc, self._grad_W_enc.T
        sae.b_dec.grad = grad_recon.sum(0, dtype=torch.float32) - sae.W_enc @ grad_pre_sums
        squared_error, l1, sqrt_l1, sparsity = token_sums.mean(0)
        silent = batch * d_sae - by_token[-1]
        at_zero = penalty(sae.config.penalty)(acts.new_zeros(1, 1), eps)[0]
        loss = squared_error + l1_coefficient * (sparsity + silent * at_zero / batch)
        return StepStats(loss=loss, squared_error=squared_error, l1=l1, sqrt_l1=sqrt_l1, fired=by_latent.diff())


def _capacity(entries: int) -> int:
    return min(entries, max(_LEAST_CAPACITY, math.ceil(2 * CUDA.density * entries)))


class _Count:
    """A number on its way to the host."""

    def __init__(self, value: Tensor) -> None:
        self._host = value
        self._copied = None
        if value.is_cuda:
            self._host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._host.copy_(value, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> int:
        if self._copied is not None:
            self._copied.synchronize()
        return int(self._host.item())


@torch.no_grad()
def fused_update(sae: SparseAutoencoder, adam: Adam) -> None:
    """Does what `optimizer.update` does, to rounding, in one pass over the weights."""
    step = adam.steps_taken + 1
    beta1, beta2 = adam.betas
    scalars = (adam.lr / (1 - beta1**step), math.sqrt(1 - beta2**step), 1 - beta1, 1 - beta2, adam.eps)
    for name, parameter in sae.named_parameters():
        grad, moments = parameter.grad, (adam.first_moment[name], adam.second_moment[name])
        assert grad is not None
        assert parameter.is_contiguous()
        if name == "W_dec":
            block = triton.next_power_of_2(sae.d_in)
            kernels.update_decoder[(sae.d_sae,)](parameter, grad, *moments, sae.d_in, *scalars, BLOCK=block, num_warps=4)
            continue
        rows, columns = (1, len(parameter)) if parameter.ndim == 1 else parameter.shape
        strides = (0, 1) if grad.ndim == 1 else grad.stride()
        grid = (triton.cdiv(rows, _MATRIX["ROWS"]), triton.cdiv(columns, _MATRIX["COLUMNS"]))
        kernels.update_matrix[grid](parameter, grad, *moments, rows, columns, *strides, *scalars, **_MATRIX)
    adam.set_steps_taken(step)
