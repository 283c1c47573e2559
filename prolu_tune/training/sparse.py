"""Loss and gradients of one batch on the CPU, touching active entries only; what is meant stands in `step`.

Every gradient is zero where a latent is silent. So the encoder's product is the only dense one; its result is scanned
for active entries, and the rest gathers rows of W_dec, of the residual and of x. Work and memory grow with L0.
"""

import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prolu_tune import metrics
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.sae.nonlinearities import nonlinearity
from prolu_tune.sae.penalties import penalty
from prolu_tune.training.step import StepStats

# Blocks that stay in a core's cache. In one piece the scan took 1.4 times and the gathers 1.5 to 3 times as long, most
# of it for fresh pages of large temporaries.
_SCAN_ENTRIES = 2**20
_GATHER_FLOATS = 3 * 2**17
_PRODUCT_ENTRIES = 2**24
"""Entries of (tokens, d_sae) that are there at once, 64 MB; larger batches are multiplied and scanned in parts."""


# What `pre` must exceed, given the biases, for the nonlinearity of this name to open; exact in IEEE arithmetic. One that
# is not here is trained densely.
THRESHOLDS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.neg,
    "prolu_relu": lambda b_enc: torch.relu(-b_enc),
    "prolu_ste": lambda b_enc: torch.relu(-b_enc),
}


class Entries(NamedTuple):
    """The active entries of a batch, token by token, latents ascending."""

    pre: Float[Tensor, " active"]
    row: Int[Tensor, " active"]
    latent: Int[Tensor, " active"]
    """Both int32: with a tenth of all entries active the indices are most of the step's memory."""


class SparseStep:
    """Called like `dense_gradients`, with the same results to rounding; keeps one array of at most 64 MB between calls."""

    def __init__(self) -> None:
        """Takes no memory before the first step."""
        self._pre = torch.empty(0)
        with warnings.catch_warnings():
            # torch says once per process that CSR tensors are in beta.
            warnings.simplefilter("ignore", UserWarning)
            _by_latent_pattern(torch.zeros(2, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0), 1)

    def release(self) -> None:
        """Gives the array back; the next step takes a new one."""
        self._pre = torch.empty(0)

    @torch.no_grad()
    def __call__(self, sae: SparseAutoencoder, x: Float[Tensor, "batch d_in"], *, l1_coefficient: float) -> StepStats:
        """Returns the batch's statistics and leaves the gradients of the loss in `.grad` of the four parameters.

        Args:
            sae: its configuration says which nonlinearity (one of THRESHOLDS) and penalty; float32, on the CPU.
            x: tokens that `sae.normalize` has rescaled.
            l1_coefficient: weight of the penalty against the squared error summed over d_in.
        """
        assert sae.operands == torch.float32
        centred = x - sae.b_dec
        threshold = THRESHOLDS[sae.config.nonlinearity](sae.b_enc)
        entries = self._active_entries(centred, sae.W_enc, threshold)
        return _gradients(sae, centred, entries, l1_coefficient=l1_coefficient)

    def _active_entries(
        self, centred: Float[Tensor, "batch d_in"], W_enc: Float[Tensor, "d_in d_sae"], threshold: Float[Tensor, " d_sae"]
    ) -> Entries:
        d_sae = W_enc.shape[1]
        parts = centred.tensor_split(-(-len(centred) * d_sae // _PRODUCT_ENTRIES))
        if self._pre.shape != (len(parts[0]), d_sae):
            self._pre = torch.empty(len(parts[0]), d_sae)
        found, first_row = [], 0
        for part in parts:
            pre = torch.mm(part, W_enc, out=self._pre[: len(part)])
            found.append(active_entries(pre, threshold, first_row=first_row))
            first_row += len(part)
        return found[0] if len(found) == 1 else Entries(*(torch.cat(tensors) for tensors in zip(*found, strict=True)))


def active_entries(pre: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"], *, first_row: int = 0) -> Entries:
    """Returns the entries of `pre` that exceed their latent's threshold; rows are counted from `first_row`."""
    batch, d_sae = pre.shape
    rows = min(batch, max(1, _SCAN_ENTRIES // d_sae))
    # Bytes are looked through eight at a time, as int64: of the scan's time nonzero on bytes alone would take half.
    mask = torch.zeros((rows * d_sae + 7) // 8 * 8, dtype=torch.bool)
    eights, words = mask.view(torch.uint8).view(-1, 8), mask.view(torch.int64)
    values, found_rows, latents = [], [], []
    for start in range(0, batch, rows):
        block = pre[start : start + rows]
        if len(block) < rows:
            mask.zero_()
        torch.gt(block, threshold, out=mask[: block.numel()].view(block.shape))
        word = words.nonzero().view(-1)
        in_word = eights.index_select(0, word).nonzero()
        position = word.index_select(0, in_word[:, 0]).mul_(8).add_(in_word[:, 1])
        values.append(block.view(-1).index_select(0, position))
        row = position.div(d_sae, rounding_mode="floor")
        latents.append(position.sub_(row, alpha=d_sae).int())
        found_rows.append(row.add_(first_row + start).int())
    return Entries(torch.cat(values), torch.cat(found_rows), torch.cat(latents))


def _gradients(
    sae: SparseAutoencoder, centred: Float[Tensor, "batch d_in"], entries: Entries, *, l1_coefficient: float
) -> StepStats:
    batch, d_sae = len(centred), sae.d_sae
    # The same entries latent by latent, tokens ascending. Short keys make the stable sort a quick radix sort.
    keys = entries.latent.short() if d_sae <= torch.iinfo(torch.int16).max else entries.latent
    order = keys.sort(stable=True).indices
    del keys
    latent, row = entries.latent.index_select(0, order), entries.row.index_select(0, order)
    fired = torch.bincount(latent, minlength=d_sae)
    by_latent = _offsets(fired)

    # Gate and penalty are the very functions of the dense step, applied to a batch of one row that holds active entries.
    pre, bias = entries.pre.index_select(0, order), sae.b_enc.index_select(0, latent)
    with torch.enable_grad():
        acts = nonlinearity(sae.config.nonlinearity)(pre.requires_grad_().unsqueeze(0), bias.requires_grad_())
        sparsity = _mean_penalty(sae, acts, batch)
        (grad_acts,) = torch.autograd.grad(l1_coefficient * sparsity, acts)
    values = acts.detach().view(-1)

    by_token = _offsets(torch.bincount(entries.row, minlength=batch))
    values_by_token = torch.empty_like(values).index_copy_(0, order, values)
    residual = torch.empty_like(centred)
    for tokens, recon in _weighted_sums(sae.W_dec.detach(), entries.latent, values_by_token, by_token):
        torch.sub(recon, centred[tokens], out=residual[tokens])
    # metrics.squared_error(recon, x), without another array of that size.
    squared_error = residual.square().sum(1).mean()
    grad_recon = residual.mul_(2 / batch)
    # At the highest density that is trained sparsely the indices take as much memory as all the rest.
    del entries, order, values_by_token

    # In the latents' order each row of W_dec is read once, and what is gathered is the smaller of the two arrays.
    pattern = _by_latent_pattern(by_latent, row, grad_acts.view(-1), batch)
    grad_acts = torch.sparse.sampled_addmm(pattern, sae.W_dec, grad_recon.T).values()
    grad_pre, grad_bias = torch.autograd.grad(acts, (pre, bias), grad_acts.view_as(acts))

    grad_W_dec, grad_W_enc = _gradient_of(sae.W_dec), _gradient_of(sae.W_enc)
    for latents, sums in _weighted_sums(grad_recon, row, values, by_latent):
        grad_W_dec[latents] = sums
    for latents, sums in _weighted_sums(centred, row, grad_pre, by_latent):
        grad_W_enc[:, latents] = sums.T
    torch.zeros(d_sae, out=_gradient_of(sae.b_enc)).index_add_(0, latent, grad_bias)
    grad_pre_sums = torch.zeros(d_sae).index_add_(0, latent, grad_pre)
    torch.sub(grad_recon.sum(0), sae.W_enc @ grad_pre_sums, out=_gradient_of(sae.b_dec))

    one_row = values.unsqueeze(0)
    return StepStats(
        loss=squared_error + l1_coefficient * sparsity.detach(),
        squared_error=squared_error,
        l1=metrics.l1(one_row)[0] / batch,
        sqrt_l1=metrics.sqrt_l1(one_row)[0] / batch,
        fired=fired,
    )


def _mean_penalty(sae: SparseAutoencoder, acts: Float[Tensor, "one active"], batch: int) -> Float[Tensor, ""]:
    """Returns the penalty's mean over the batch; penalties are sums over latents, so silent ones add a constant each."""
    function, eps = penalty(sae.config.penalty), sae.config.sqrt_l1_eps
    silent = batch * sae.d_sae - acts.shape[1]
    return (function(acts, eps)[0] + silent * function(acts.new_zeros(1, 1), eps)[0]) / batch


def _weighted_sums(
    table: Float[Tensor, "rows d_in"],
    index: Int[Tensor, " active"],
    weight: Float[Tensor, " active"],
    offsets: Int[Tensor, " bounds"],
) -> Iterator[tuple[slice, Tensor]]:
    """Yields, block by block, a slice of bags and the weighted sum of table rows of each; a bag is offsets[i]:offsets[i+1]."""
    num_bags, size = len(offsets) - 1, max(1, _GATHER_FLOATS // table.shape[1])
    bounds = [*offsets[:-1:size].tolist(), len(index)]
    for block, (low, high) in enumerate(pairwise(bounds)):
        bags = slice(block * size, min((block + 1) * size, num_bags))
        # Twice to three times as fast as a CSR product (MKL), and each sum is made by one thread in a fixed order.
        yield (
            bags,
            nn.functional.embedding_bag(
                index[low:high],
                table,
                offsets[bags.start : bags.stop + 1] - low,
                mode="sum",
                per_sample_weights=weight[low:high],
                include_last_offset=True,
            ),
        )


def _by_latent_pattern(
    offsets: Int[Tensor, " bounds"], row: Int[Tensor, " active"], values: Float[Tensor, " active"], batch: int
) -> Tensor:
    return torch.sparse_csr_tensor(offsets, row, values, (len(offsets) - 1, batch), check_invariants=False)


def _offsets(counts: Int[Tensor, " bags"]) -> Int[Tensor, " bounds"]:
    return nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    """Returns the parameter's gradient array, for overwriting: fresh pages for it would cost more than filling it."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad
