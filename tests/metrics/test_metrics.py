import math

import pytest
import torch

from prolu_tune import metrics


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator) + 2
    acts = torch.relu(torch.randn(60, 7, generator=generator))
    acts[:, 3] = 0
    return x, acts, x + 0.3 * torch.randn(60, 5, generator=generator)


def test_formulas_give_the_numbers_worked_out_by_hand():
    acts = torch.tensor([[4.0, 0.0, 9.0], [0.0, 0.0, 0.25]])
    assert metrics.l0(acts).tolist() == [2, 1]
    assert metrics.l1(acts).tolist() == [13, 0.25]
    assert metrics.sqrt_l1(acts).tolist() == [5, 0.5]
    assert metrics.firing_counts(acts).tolist() == [1, 0, 2]
    x, recon = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 4.0], [0.0, 4.0]])
    assert metrics.squared_error(recon, x).tolist() == [4, 9]
    assert metrics.mse(recon, x).item() == 13 / 4
    # The mean is (2, 3), each token lies 2 (squared) from it.
    assert metrics.fvu(recon, x).item() == 13 / 4
    assert metrics.relative_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 10.0]])).tolist() == [0.5]
    assert metrics.frac_negative_bias(torch.tensor([-1.0, 0.0, 1.0, -0.1])) == 0.5


def test_alive_needs_a_firing_and_the_least_frequency():
    counts = torch.tensor([0, 1, 2, 3])
    assert metrics.alive(counts, tokens=100).tolist() == [False, True, True, True]
    assert metrics.alive(counts, tokens=100, least_frequency=0.02).tolist() == [False, False, True, True]


def test_degradation_is_positive_when_worse_and_the_score_is_1_when_nothing_is_lost():
    assert metrics.ce_degradation(ce_loss_clean=3.5, ce_loss_with_sae=4.0) == 0.5
    assert metrics.ce_loss_score(ce_loss_clean=3.0, ce_loss_with_sae=3.0, ce_loss_zero=10.0) == 1
    assert metrics.ce_loss_score(ce_loss_clean=3.0, ce_loss_with_sae=6.5, ce_loss_zero=10.0) == 0.5
    assert math.isnan(metrics.ce_loss_score(ce_loss_clean=3.0, ce_loss_with_sae=3.0, ce_loss_zero=3.0))


@pytest.mark.parametrize("sizes", [[60], [1] * 60, [7, 50, 3]])
def test_sums_over_batches_of_any_size_equal_the_formulas_on_all_tokens(tokens, sizes):
    x, acts, recon = tokens
    sums = metrics.MetricSums(d_in=5, d_sae=7)
    for part in zip(x.split(sizes), acts.split(sizes), recon.split(sizes), strict=True):
        sums.add(*part)
    x64, acts64, recon64 = x.double(), acts.double(), recon.double()
    assert sums.tokens == 60
    assert sums.result() == pytest.approx(
        {
            "l0": metrics.l0(acts64).mean().item(),
            "l1": metrics.l1(acts64).mean().item(),
            "sqrt_l1": metrics.sqrt_l1(acts64).mean().item(),
            "mse": metrics.mse(recon64, x64).item(),
            "fvu": metrics.fvu(recon64, x64).item(),
            "relative_norm": metrics.relative_norm(recon64, x64).mean().item(),
            "frac_alive": 6 / 7,
        },
        rel=1e-6,
    )


def test_a_token_of_norm_0_has_no_relative_norm_and_does_not_spoil_the_mean():
    sums = metrics.MetricSums(d_in=2, d_sae=1)
    sums.add(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.ones(2, 1), torch.tensor([[1.0, 0.0], [0.0, 2.5]]))
    assert sums.result()["relative_norm"] == 0.5


def test_no_token_has_no_mean():
    with pytest.raises(ValueError, match="no token"):
        metrics.MetricSums(d_in=2, d_sae=1).result()
