import itertools

import pytest
import torch

from prolu_tune.config.names import NONLINEARITIES, PENALTIES
from prolu_tune.config.trial import SaeConfig
from prolu_tune.sae import SparseAutoencoder
from prolu_tune.training.step import StepStats, dense_gradients


def _step(nonlinearity: str, penalty: str, operands: torch.dtype) -> tuple[SparseAutoencoder, StepStats]:
    config = SaeConfig(nonlinearity=nonlinearity, penalty=penalty)
    sae = SparseAutoencoder(config, 16, 48, generator=torch.Generator().manual_seed(0), operands=operands)
    x = sae.normalize(torch.randn(64, 16, generator=torch.Generator().manual_seed(1))).x
    return sae, dense_gradients(sae, x, l1_coefficient=0.5)


@pytest.mark.parametrize(("nonlinearity", "penalty"), list(itertools.product(NONLINEARITIES, PENALTIES)))
def test_bfloat16_operands_leave_statistics_and_gradients_in_float32_and_near_the_exact_ones(nonlinearity, penalty):
    exact_sae, exact = _step(nonlinearity, penalty, torch.float32)
    rounded_sae, rounded = _step(nonlinearity, penalty, torch.bfloat16)
    for name in ("loss", "squared_error", "l1", "sqrt_l1"):
        assert getattr(rounded, name).dtype == torch.float32
        assert getattr(rounded, name).item() == pytest.approx(getattr(exact, name).item(), rel=0.02)
    for a, b in zip(exact_sae.parameters(), rounded_sae.parameters(), strict=True):
        assert b.dtype == b.grad.dtype == torch.float32
        # Rounding opens and closes gates; with sqrt_l1 each such entry carries a gradient of up to 500 coefficients.
        assert (a.grad - b.grad).norm() < {"l1": 0.05, "sqrt_l1": 0.4}[penalty] * a.grad.norm()


def test_gradients_of_one_step_do_not_add_to_those_of_the_last():
    sae, _ = _step("relu", "l1", torch.float32)
    first = [parameter.grad.clone() for parameter in sae.parameters()]
    x = sae.normalize(torch.randn(64, 16, generator=torch.Generator().manual_seed(1))).x
    dense_gradients(sae, x, l1_coefficient=0.5)
    assert all(torch.equal(a, p.grad) for a, p in zip(first, sae.parameters(), strict=True))


@pytest.mark.parametrize("entries", [1, 700, 48 * 63])
def test_a_batch_worked_through_in_parts_gives_the_same_statistics_and_gradients(entries, monkeypatch):
    whole_sae, whole = _step("prolu_ste", "sqrt_l1", torch.float32)
    monkeypatch.setattr("prolu_tune.training.step._BLOCK_ENTRIES", entries)
    parts_sae, parts = _step("prolu_ste", "sqrt_l1", torch.float32)
    torch.testing.assert_close(tuple(parts), tuple(whole))
    for a, b in zip(parts_sae.parameters(), whole_sae.parameters(), strict=True):
        assert (a.grad - b.grad).norm() < 1e-4 * b.grad.norm()
