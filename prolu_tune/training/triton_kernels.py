"""The Triton kernels of `triton_step`: one program per token or per latent, fixed launch shapes, no atomics.

Every sum is made by one program in one order, so results depend neither on scheduling nor on what else runs. Loops over
entries take TILE of them at a time. Offsets that may pass 2**31 are int64. `no_type_check` keeps the tests' shape checks
out, which Triton's interpreter cannot see through.
"""

from typing import no_type_check

import triton  # pyright: ignore[reportMissingImports]  # there on GPU machines only
import triton.language as tl  # pyright: ignore[reportMissingImports]  # likewise

RELU = tl.constexpr(0)
PROLU_RELU = tl.constexpr(1)
PROLU_STE = tl.constexpr(2)
L1 = tl.constexpr(0)
SQRT_L1 = tl.constexpr(1)


@triton.jit
@no_type_check
def _is_open(pre, bias, NONLINEARITY: tl.constexpr):
    opened = pre + bias > 0
    if NONLINEARITY != RELU:
        opened = opened & (pre > 0)
    return opened


@triton.jit
@no_type_check
def count_active(pre_ptr, bias_ptr, counts_ptr, d_sae, NONLINEARITY: tl.constexpr, BLOCK: tl.constexpr):
    """Stores each token's number of active latents."""
    token = tl.program_id(0).to(tl.int64)
    count = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, d_sae, BLOCK):
        latent = start + tl.arange(0, BLOCK)
        inside = latent < d_sae
        pre = tl.load(pre_ptr + token * d_sae + latent, mask=inside, other=0.0)
        bias = tl.load(bias_ptr + latent, mask=inside, other=0.0)
        count += (_is_open(pre, bias, NONLINEARITY) & inside).to(tl.int32)
    tl.store(counts_ptr + token, tl.sum(count, 0))


@triton.jit
@no_type_check
def compact_active(
    pre_ptr,
    bias_ptr,
    offsets_ptr,
    latents_ptr,
    tokens_ptr,
    acts_ptr,
    token_sums_ptr,
    d_sae,
    capacity,
    eps,
    NONLINEARITY: tl.constexpr,
    PENALTY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes a token's active entries one after another, and its l1, sqrt_l1 and penalty over them."""
    token = tl.program_id(0).to(tl.int64)
    base = tl.load(offsets_ptr + token)
    l1 = tl.zeros((BLOCK,), dtype=tl.float32)
    sqrt_l1 = tl.zeros((BLOCK,), dtype=tl.float32)
    penalty = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, d_sae, BLOCK):
        latent = start + tl.arange(0, BLOCK)
        inside = latent < d_sae
        pre = tl.load(pre_ptr + token * d_sae + latent, mask=inside, other=0.0)
        bias = tl.load(bias_ptr + latent, mask=inside, other=0.0)
        active = _is_open(pre, bias, NONLINEARITY) & inside
        if NONLINEARITY == RELU:
            pre += bias
        acts = tl.where(active, pre, 0.0)
        l1 += acts
        sqrt_l1 += tl.sqrt(acts)
        if PENALTY == SQRT_L1:
            penalty += tl.where(active, tl.sqrt(acts + eps), 0.0)
        else:
            penalty += acts
        rank = tl.cumsum(active.to(tl.int32), 0)
        position = base + rank - 1
        kept = active & (position < capacity)
        tl.store(latents_ptr + position, latent, mask=kept)
        tl.store(tokens_ptr + position, tl.zeros_like(latent) + token.to(tl.int32), mask=kept)
        tl.store(acts_ptr + position, acts, mask=kept)
        base += tl.sum(active.to(tl.int32), 0)
    tl.store(token_sums_ptr + token * 4 + 1, tl.sum(l1, 0))
    tl.store(token_sums_ptr + token * 4 + 2, tl.sum(sqrt_l1, 0))
    tl.store(token_sums_ptr + token * 4 + 3, tl.sum(penalty, 0))


@triton.jit
@no_type_check
def decode(
    offsets_ptr,
    latents_ptr,
    acts_ptr,
    W_dec_ptr,
    centred_ptr,
    grad_recon_ptr,
    token_sums_ptr,
    d_in,
    capacity,
    two_over_batch,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Writes the gradient at a token's reconstruction, from gathered rows of W_dec, and its squared error."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < d_in
    first = tl.load(offsets_ptr + token)
    last = tl.minimum(tl.load(offsets_ptr + token + 1), capacity)
    recon = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(first, last, TILE):
        entry = start + tl.arange(0, TILE)
        there = entry < last
        latent = tl.load(latents_ptr + entry, mask=there, other=0).to(tl.int64)
        acts = tl.load(acts_ptr + entry, mask=there, other=0.0)
        both = there[:, None] & inside[None, :]
        rows = tl.load(W_dec_ptr + latent[:, None] * d_in + column[None, :], mask=both, other=0.0)
        recon += tl.sum(acts[:, None] * rows.to(tl.float32), 0)
    residual = recon - tl.load(centred_ptr + token * d_in + column, mask=inside, other=0.0)
    residual = tl.where(inside, residual, 0.0)
    tl.store(grad_recon_ptr + token * d_in + column, residual * two_over_batch, mask=inside)
    tl.store(token_sums_ptr + token * 4, tl.sum(residual * residual, 0))


@triton.jit
@no_type_check
def latent_gradients(
    offsets_ptr,
    order_ptr,
    tokens_ptr,
    acts_ptr,
    W_dec_ptr,
    grad_recon_ptr,
    centred_ptr,
    grad_W_dec_ptr,
    grad_W_enc_ptr,
    grad_bias_ptr,
    grad_pre_sums_ptr,
    d_in,
    penalty_scale,
    eps,
    NONLINEARITY: tl.constexpr,
    PENALTY: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Writes a latent's gradients: rows of W_dec and of transposed W_enc, bias, and the sum of the gradients at pre.

    A token's gradient row is gathered once, for the gradient of the value and for that of W_dec.
    """
    latent = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < d_in
    first = tl.load(offsets_ptr + latent)
    last = tl.load(offsets_ptr + latent + 1)
    decoder = tl.load(W_dec_ptr + latent * d_in + column, mask=inside, other=0.0).to(tl.float32)
    grad_W_dec = tl.zeros((BLOCK,), dtype=tl.float32)
    grad_W_enc = tl.zeros((BLOCK,), dtype=tl.float32)
    grad_bias = tl.zeros((TILE,), dtype=tl.float32)
    grad_pre_sum = tl.zeros((TILE,), dtype=tl.float32)
    for start in range(first, last, TILE):
        sorted_entry = start + tl.arange(0, TILE)
        there = sorted_entry < last
        entry = tl.load(order_ptr + sorted_entry, mask=there, other=0)
        token = tl.load(tokens_ptr + entry, mask=there, other=0).to(tl.int64)
        acts = tl.load(acts_ptr + entry, mask=there, other=0.0)
        both = there[:, None] & inside[None, :]
        grad_recon = tl.load(grad_recon_ptr + token[:, None] * d_in + column[None, :], mask=both, other=0.0).to(tl.float32)
        centred = tl.load(centred_ptr + token[:, None] * d_in + column[None, :], mask=both, other=0.0).to(tl.float32)
        grad = tl.sum(grad_recon * decoder[None, :], 1)
        if PENALTY == SQRT_L1:
            grad += penalty_scale * 0.5 / tl.sqrt(acts + eps)
        else:
            grad += penalty_scale
        grad = tl.where(there, grad, 0.0)
        grad_pre = grad
        if NONLINEARITY == PROLU_STE:
            grad_pre = grad * (1 + acts)
            grad = grad * acts
        grad_W_dec += tl.sum(acts[:, None] * grad_recon, 0)
        grad_W_enc += tl.sum(grad_pre[:, None] * centred, 0)
        grad_bias += grad
        grad_pre_sum += grad_pre
    tl.store(grad_W_dec_ptr + latent * d_in + column, grad_W_dec, mask=inside)
    tl.store(grad_W_enc_ptr + latent * d_in + column, grad_W_enc, mask=inside)
    tl.store(grad_bias_ptr + latent, tl.sum(grad_bias, 0))
    tl.store(grad_pre_sums_ptr + latent, tl.sum(grad_pre_sum, 0))


@triton.jit
@no_type_check
def _adam(p, grad, m_ptr, v_ptr, where, inside, step_size, root_correction, beta1_left, beta2_left, eps):
    # 1 - beta comes as an argument: taken here, in float32, it would be off by 5e-5 of itself.
    m = tl.load(m_ptr + where, mask=inside, other=0.0)
    v = tl.load(v_ptr + where, mask=inside, other=0.0)
    m += beta1_left * (grad - m)
    v += beta2_left * (grad * grad - v)
    tl.store(m_ptr + where, m, mask=inside)
    tl.store(v_ptr + where, v, mask=inside)
    return p - step_size * m / (tl.sqrt(v) / root_correction + eps)


@triton.jit
@no_type_check
def update_decoder(
    p_ptr, grad_ptr, m_ptr, v_ptr, d_in, step_size, root_correction, beta1_left, beta2_left, eps, BLOCK: tl.constexpr
):
    """Takes a decoder row's gradient along the row out, makes the Adam step, and gives the row norm 1 again."""
    column = tl.arange(0, BLOCK)
    inside = column < d_in
    where = tl.program_id(0).to(tl.int64) * d_in + column
    p = tl.load(p_ptr + where, mask=inside, other=0.0)
    grad = tl.load(grad_ptr + where, mask=inside, other=0.0)
    grad -= tl.sum(grad * p, 0) * p
    p = _adam(p, grad, m_ptr, v_ptr, where, inside, step_size, root_correction, beta1_left, beta2_left, eps)
    p = tl.where(inside, p, 0.0)
    tl.store(p_ptr + where, p / tl.sqrt(tl.sum(p * p, 0)), mask=inside)


@triton.jit
@no_type_check
def update_matrix(
    p_ptr,
    grad_ptr,
    m_ptr,
    v_ptr,
    rows,
    columns,
    grad_row_stride,
    grad_column_stride,
    step_size,
    root_correction,
    beta1_left,
    beta2_left,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Makes the Adam step on a tile of a row-major matrix, whose gradient may lie transposed."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    inside = (row < rows) & (column < columns)
    where = row * columns + column
    grad = tl.load(grad_ptr + row * grad_row_stride + column * grad_column_stride, mask=inside, other=0.0)
    p = tl.load(p_ptr + where, mask=inside, other=0.0)
    p = _adam(p, grad, m_ptr, v_ptr, where, inside, step_size, root_correction, beta1_left, beta2_left, eps)
    tl.store(p_ptr + where, p, mask=inside)
