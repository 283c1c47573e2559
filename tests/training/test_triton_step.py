import copy
import itertools
import os

import pytest
import torch

if not torch.cuda.is_available():
    # Read when kernels are defined, so before they are imported.
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="triton is not installed; the kernels run under its interpreter on the CPU too")

from prolu_tune.config.names import NONLINEARITIES, PENALTIES
from prolu_tune.config.trial import SaeConfig, TrainingConfig
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.training import triton_step
from prolu_tune.training.optimizer import Adam, update
from prolu_tune.training.step import StepStats, dense_gradients
from prolu_tune.training.triton_step import TritonStep, fused_update

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ARCHITECTURES = list(itertools.product(NONLINEARITIES, PENALTIES))
NONE, FEW, ALL = -1e4, -1.0, 1e4


def autoencoder(nonlinearity: str, penalty: str, d_in: int, d_sae: int, bias: float) -> SparseAutoencoder:
    generator = torch.Generator().manual_seed(d_sae)
    sae = SparseAutoencoder(SaeConfig(nonlinearity=nonlinearity, penalty=penalty), d_in, d_sae, generator=generator)
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_enc.uniform_(-0.5, 0.5, generator=generator).add_(bias)
        sae.b_dec.normal_(0, 0.1, generator=generator)
    return sae.to(DEVICE)


def tokens(sae: SparseAutoencoder, batch: int) -> torch.Tensor:
    return sae.normalize(torch.randn(batch, sae.d_in, generator=torch.Generator().manual_seed(batch)).to(DEVICE)).x


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
@pytest.mark.parametrize(
    ("batch", "d_in", "d_sae", "bias"),
    # The interpreter takes milliseconds a program; tiles of 8 entries are filled by ALL.
    [(1, 3, 5, FEW), (3, 5, 9, NONE), (11, 5, 9, ALL), (10, 17, 19, FEW)],
)
def test_statistics_and_gradients_are_those_of_the_dense_step(nonlinearity, penalty, batch, d_in, d_sae, bias):
    sae = autoencoder(nonlinearity, penalty, d_in, d_sae, bias)
    twin, x = copy.deepcopy(sae), tokens(sae, batch)
    got = TritonStep()(sae, x, l1_coefficient=0.3)
    expected = dense_gradients(twin, x, l1_coefficient=0.3)
    assert_same_step(got, sae, expected, twin)
    if bias == NONE:
        assert got.fired.sum() == 0
    if bias == ALL and nonlinearity == "relu":
        assert (got.fired == batch).all()


def test_a_scan_of_several_blocks_gives_the_dense_step(monkeypatch):
    monkeypatch.setitem(triton_step._SCAN, "BLOCK", 16)
    sae = autoencoder("prolu_ste", "sqrt_l1", 4, 37, FEW)
    twin, x = copy.deepcopy(sae), tokens(sae, 3)
    got = TritonStep()(sae, x, l1_coefficient=0.3)
    assert_same_step(got, sae, dense_gradients(twin, x, l1_coefficient=0.3), twin)


def test_a_batch_with_more_entries_than_there_is_room_for_is_done_densely():
    sae = autoencoder("prolu_ste", "sqrt_l1", 5, 9, FEW)
    twin, x = copy.deepcopy(sae), tokens(sae, 11)
    expected = dense_gradients(twin, x, l1_coefficient=0.3)
    active = int(expected.fired.sum())
    for capacity, is_dense in [(active, False), (active - 1, True), (1, True)]:
        got = TritonStep(capacity=capacity)(sae, x, l1_coefficient=0.3)
        assert_same_step(got, sae, expected, twin)
        assert torch.equal(sae.W_dec.grad, twin.W_dec.grad) == is_dense


def test_repeated_steps_give_the_same_bits():
    sae = autoencoder("prolu_ste", "l1", 7, 20, FEW)
    x, step = tokens(sae, 12), TritonStep()
    first = step(sae, x, l1_coefficient=0.3)
    bits = gradients(sae)
    again = step(sae, x, l1_coefficient=0.3)
    assert all(torch.equal(gradients(sae)[name], gradient) for name, gradient in bits.items())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("sparse", [False, True])
def test_the_fused_update_is_projection_adam_and_renormalisation(sparse):
    # More latents than a tile of the matrix update holds.
    sae = autoencoder("relu", "l1", 3, 34, FEW)
    twin = copy.deepcopy(sae)
    config = TrainingConfig(lr=1e-2)
    fused, adam = (Adam(each, config, eps=1e-6) for each in (sae, twin))
    gradients_of = TritonStep() if sparse else dense_gradients
    for step in (1, 2, 3):
        x = tokens(sae, 6 + step)
        gradients_of(sae, x, l1_coefficient=0.3)
        dense_gradients(twin, x, l1_coefficient=0.3)
        fused_update(sae, fused)
        update(twin, adam)
        for (name, got), (_, expected) in zip(sae.named_parameters(), twin.named_parameters(), strict=True):
            torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")
            assert_close(fused.first_moment[name], adam.first_moment[name], f"first moment of {name}")
            assert_close(fused.second_moment[name], adam.second_moment[name], f"second moment of {name}")


def test_torchs_adam_goes_on_from_a_fused_update():
    sae = autoencoder("relu", "l1", 5, 12, FEW)
    twin, config = copy.deepcopy(sae), TrainingConfig(lr=1e-2)
    fused, adam = (Adam(each, config, eps=1e-6) for each in (sae, twin))
    for step in (1, 2):
        for each in (sae, twin):
            dense_gradients(each, tokens(sae, 6), l1_coefficient=0.3)
        (fused_update if step == 1 else update)(sae, fused)
        update(twin, adam)
    for got, expected in zip(sae.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-5)
