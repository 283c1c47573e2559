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


def naive_slope(x: torch.Tensor, acts: torch.Tensor, recon: torch.Tensor, W_dec: torch.Tensor) -> float:
    """Returns the slope from its words: per active latent and token the best coefficient by lstsq, then centred sums."""
    top = bottom = 0.0
    for i in range(acts.shape[1]):
        pairs = []
        for t in range(len(x)):
            if acts[t, i] > 0:
                without = x[t] - (recon[t] - acts[t, i] * W_dec[i])
                best = torch.linalg.lstsq(W_dec[i][:, None].double(), without[:, None].double()).solution.item()
                pairs.append((acts[t, i].item(), best))
        if pairs:
            a, m = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))
            top += ((a - a.mean()) * (m - m.mean())).sum().item()
            bottom += (m - m.mean()).square().sum().item()
    return top / bottom


@pytest.mark.parametrize("sizes", [[60], [7, 50, 3]])
def test_the_slope_of_magnitudes_is_what_its_words_say(tokens, sizes):
    x, acts, _ = tokens
    W_dec = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    recon = acts @ W_dec + 0.5
    sums = metrics.MagnitudeSums(W_dec=W_dec)
    for part in zip(x.split(sizes), acts.split(sizes), recon.split(sizes), strict=True):
        sums.add(*part)
    assert sums.result()["magnitude_slope"] == pytest.approx(naive_slope(x, acts, recon, W_dec), rel=1e-5)


def test_the_slope_sees_suppression_that_grows_with_magnitude_and_not_a_constant_shift():
    true = torch.rand(200, 3, generator=torch.Generator().manual_seed(2)) + 1
    W_dec, slopes = torch.eye(3), []
    for acts in (true, 0.5 * true, true - 0.5, 2 * true - 1):
        sums = metrics.MagnitudeSums(W_dec=W_dec)
        sums.add(true @ W_dec, acts, acts @ W_dec)
        slopes.append(sums.result()["magnitude_slope"])
    assert slopes == pytest.approx([1, 0.5, 1, 2], rel=1e-5)


def test_without_two_magnitudes_there_is_no_slope():
    sums = metrics.MagnitudeSums(W_dec=torch.eye(2))
    assert math.isnan(sums.result()["magnitude_slope"])
    sums.add(torch.ones(3, 2), torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[1.0, 0.0]] * 3))
    assert math.isnan(sums.result()["magnitude_slope"])
