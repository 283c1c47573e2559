import copy
import itertools
import math

import pytest
import torch

from prolu_tune.config.names import NONLINEARITIES, PENALTIES
from prolu_tune.config.trial import SaeConfig
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.sae.nonlinearities import nonlinearity
from prolu_tune.training.sparse import THRESHOLDS, SparseStep, active_entries
from prolu_tune.training.step import StepStats, dense_gradients

ARCHITECTURES = list(itertools.product(NONLINEARITIES, PENALTIES))
SHAPES = [(1, 3, 5), (1, 1, 1), (7, 5, 9), (33, 16, 64), (100, 37, 1001)]
NONE, FEW, MANY, ALL = -1e4, -1.0, 0.0, 1e4


def autoencoder(nonlinearity: str, penalty: str, d_in: int, d_sae: int, bias: float) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(d_sae)
    sae = SparseAutoencoder(SaeConfig(nonlinearity=nonlinearity, penalty=penalty), d_in, d_sae, generator=generator)
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.uniform_(-0.5, 0.5, generator=generator).add_(bias)
        sae.b_dec.normal_(0, 0.1, generator=generator)
    return sae


def tokens(sae: SparseAutoencoder, batch: int) -> torch.Tensor:
    return sae.normalize(torch.randn(batch, sae.d_in, generator=torch.Generator().manual_seed(batch))).x


def gradients(sae: SparseAutoencoder) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in sae.named_parameters() if parameter.grad is not None}


def assert_close(got: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=3e-6 * scale, msg=lambda text: f"{name}: {text}")


def assert_same_step(got: StepStats, sae: SparseAutoencoder, expected: StepStats, twin: SparseAutoencoder) -> None:
    assert gradients(sae).keys() == {"W_enc", "W_dec", "b_enc", "b_dec"}
    for name, gradient in gradients(twin).items():
        assert_close(gradients(sae)[name], gradient, name)
    assert torch.equal(got.fired, expected.fired)
    for name in ("loss", "squared_error", "l1", "sqrt_l1"):
        assert_close(getattr(got, name), getattr(expected, name), name)


@pytest.mark.parametrize(("nonlinearity", "penalty"), ARCHITECTURES)
@pytest.mark.parametrize(("batch", "d_in", "d_sae"), SHAPES)
@pytest.mark.parametrize("bias", [NONE, FEW, MANY, ALL])
def test_statistics_and_gradients_are_those_of_the_dense_step(nonlinearity, penalty, batch, d_in, d_sae, bias):
    sae = autoencoder(nonlinearity, penalty, d_in, d_sae, bias)
    twin, x = copy.deepcopy(sae), tokens(sae, batch)
    got = SparseStep()(sae, x, l1_coefficient=0.3)
    expected = dense_gradients(twin, x, l1_coefficient=0.3)
    assert_same_step(got, sae, expected, twin)
    if bias == NONE:
        assert got.fired.sum() == 0
    if bias == ALL and nonlinearity == "relu":
        assert (got.fired == batch).all()


@pytest.mark.parametrize(("nonlinearity", "penalty"), ARCHITECTURES)
def test_gradients_agree_with_formulas_written_out_in_float64(nonlinearity, penalty):
    sae, l1_coefficient, batch = autoencoder(nonlinearity, penalty, 11, 40, FEW), 0.7, 23
    x = tokens(sae, batch)
    stats = SparseStep()(sae, x, l1_coefficient=l1_coefficient)

    W_enc, W_dec, b_enc, b_dec = (p.detach().double() for p in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec))
    centred = x.double() - b_dec
    pre = centred @ W_enc
    gate = (pre + b_enc > 0) & (torch.tensor(nonlinearity == "relu") | (pre > 0))
    acts = torch.where(gate, pre + b_enc if nonlinearity == "relu" else pre, 0)
    residual = acts @ W_dec + b_dec - x
    grad_recon = 2 * residual / batch
    eps = sae.config.sqrt_l1_eps
    penalties = acts if penalty == "l1" else (acts + eps).sqrt()
    slope = torch.ones_like(acts) if penalty == "l1" else 0.5 / (acts + eps).sqrt()
    grad = torch.where(gate, grad_recon @ W_dec.T + l1_coefficient / batch * slope, 0)
    grad_pre, grad_bias = (grad * (1 + pre), grad * pre) if nonlinearity == "prolu_ste" else (grad, grad)

    assert 0 < gate.double().mean() < 0.4
    expected = {
        "W_enc": centred.T @ grad_pre,
        "W_dec": acts.T @ grad_recon,
        "b_enc": grad_bias.sum(0),
        "b_dec": grad_recon.sum(0) - W_enc @ grad_pre.sum(0),
    }
    for name, gradient in gradients(sae).items():
        assert_close(gradient.double(), expected[name], name)
    loss = residual.square().sum(1).mean() + l1_coefficient * penalties.sum(1).mean()
    assert stats.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert stats.sqrt_l1.item() == pytest.approx(acts.sqrt().sum(1).mean().item(), rel=1e-5)


def test_several_blocks_of_scan_and_gather_give_the_dense_step():
    sae = autoencoder("prolu_ste", "sqrt_l1", 300, 9001, -2.0)
    twin, x = copy.deepcopy(sae), tokens(sae, 350)
    got = SparseStep()(sae, x, l1_coefficient=0.3)
    assert_same_step(got, sae, dense_gradients(twin, x, l1_coefficient=0.3), twin)


def test_repeated_steps_and_fresh_memory_give_the_same_bits():
    sae = autoencoder("prolu_ste", "l1", 64, 1500, FEW)
    x, step = tokens(sae, 300), SparseStep()
    first = step(sae, x, l1_coefficient=0.3)
    bits = gradients(sae)
    for other in (step, SparseStep()):
        sae.zero_grad()
        again = other(sae, x, l1_coefficient=0.3)
        assert all(torch.equal(gradients(sae)[name], gradient) for name, gradient in bits.items())
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_gradients_of_the_step_before_are_overwritten_whatever_they_hold():
    sae = autoencoder("relu", "l1", 16, 50, FEW)
    x, step = tokens(sae, 30), SparseStep()
    step(sae, x, l1_coefficient=0.3)
    bits = gradients(sae)
    for parameter in sae.parameters():
        parameter.grad.fill_(math.nan)
    step(sae, x, l1_coefficient=0.3)
    assert all(torch.equal(gradients(sae)[name], gradient) for name, gradient in bits.items())


def test_a_step_object_serves_batches_and_autoencoders_of_other_shapes():
    step = SparseStep()
    for batch, d_in, d_sae in [(20, 8, 30), (5, 8, 30), (20, 4, 70)]:
        sae = autoencoder("relu", "l1", d_in, d_sae, FEW)
        twin, x = copy.deepcopy(sae), tokens(sae, batch)
        got = step(sae, x, l1_coefficient=0.3)
        assert_same_step(got, sae, dense_gradients(twin, x, l1_coefficient=0.3), twin)
        step.release()


def test_an_infinite_gradient_at_a_closed_gate_gives_zero_not_nan():
    sae = autoencoder("prolu_ste", "l1", 8, 30, FEW)
    x = tokens(sae, 20)
    with torch.no_grad():
        sae.W_dec[3] = math.inf
        sae.b_enc[3] = NONE
    SparseStep()(sae, x, l1_coefficient=0.3)
    assert (sae.W_enc.grad[:, 3] == 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients(sae).values())


def test_active_entries_are_those_above_the_threshold_in_token_order():
    pre = torch.randn(50, 23, generator=torch.Generator().manual_seed(0))
    threshold = torch.linspace(-1, 3, 23)
    entries = active_entries(pre, threshold)
    expected = (pre > threshold).nonzero()
    assert torch.equal(torch.stack([entries.row, entries.latent], 1), expected)
    assert torch.equal(entries.pre, pre[pre > threshold])


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_the_threshold_is_the_gate_to_the_last_bit(name):
    bias = torch.tensor([-1.0, -0.1, 0.0, 0.1, 1e-40, -1e-40])
    edge = THRESHOLDS[name](bias)
    up, down = torch.full_like(edge, math.inf), torch.full_like(edge, -math.inf)
    pre = torch.stack([edge, torch.nextafter(edge, up), torch.nextafter(edge, down)])
    assert torch.equal(pre > edge, nonlinearity(name)(pre, bias) > 0)
