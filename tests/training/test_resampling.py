import math

import pytest
import torch

from prolu_tune.config.trial import ResamplingConfig, SaeConfig, TrainingConfig
from prolu_tune.sae import SparseAutoencoder
from prolu_tune.training.numerics import seeded_generator
from prolu_tune.training.optimizer import Adam
from prolu_tune.training.resampling import (
    Draw,
    Resampler,
    candidate_weights,
    dead_latents,
    merge_draw,
    replace_latents,
    resampling_notes,
    reset_moments,
    sampling_keys,
    window_resolves,
)


def _sae() -> SparseAutoencoder:
    sae = SparseAutoencoder(SaeConfig(), 2, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[3.0, 1.0, 0.0, 6.0], [4.0, 0.0, 1.0, 8.0]]))
        sae.b_enc.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    return sae


ALIVE = torch.tensor([True, False, False, True])


def test_dead_is_a_frequency_below_the_limit():
    # At the post's window the limit is 51.2M * 3e-6 = 153.6 firings.
    counts = torch.tensor([0, 153, 154, 10_000])
    assert dead_latents(counts, tokens=51_200_000, dead_frequency=3e-6).tolist() == [True, True, False, False]
    assert dead_latents(counts, tokens=1000, dead_frequency=3e-6).tolist() == [True, False, False, False]
    assert not dead_latents(counts, tokens=1000, dead_frequency=0.0).any()


def test_the_window_resolves_the_posts_frequency_from_1m_tokens_on():
    assert window_resolves(tokens=1_000_000, dead_frequency=3e-6)
    assert not window_resolves(tokens=999_000, dead_frequency=3e-6)


def test_weights_are_squared_errors_of_candidates_and_0_for_others():
    norms = torch.tensor([1.0, 2499.9, 2500.0, 3000.0, 0.0, 5.0, 5.0])
    errors = torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0, torch.inf, torch.nan])
    kwargs = {"max_candidate_norm": 2500.0, "candidate_weight": "squared_error"}
    assert candidate_weights(norms, errors, **kwargs).tolist() == [2, 3, 0, 0, 0, 0, 0]
    squared = candidate_weights(norms, errors, **{**kwargs, "candidate_weight": "squared_error_squared"})
    assert squared.tolist() == [4, 9, 0, 0, 0, 0, 0]
    unlimited = candidate_weights(norms, errors, **{**kwargs, "max_candidate_norm": None})
    assert unlimited.tolist() == [2, 3, 4, 5, 0, 0, 0]


def test_draws_without_replacement_have_the_probabilities_of_drawing_one_after_the_other():
    weights = torch.tensor([1.0, 2.0, 5.0, 0.0], dtype=torch.float64)
    generator, num = torch.Generator().manual_seed(0), 20_000
    orders = sampling_keys(weights.repeat(num, 1), generator).topk(2, dim=1).indices
    for first in range(3):
        for second in range(3):
            share = ((orders[:, 0] == first) & (orders[:, 1] == second)).double().mean().item()
            w = weights.tolist()
            expected = 0.0 if first == second else w[first] / 8 * w[second] / (8 - w[first])
            assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / num))
    assert (orders != 3).all()


def test_merging_batch_by_batch_is_drawing_from_all_at_once():
    generator = torch.Generator().manual_seed(0)
    keys, x = torch.randn(50, generator=generator, dtype=torch.float64), torch.randn(50, 3, generator=generator)
    draw = Draw(torch.empty(0, dtype=torch.float64), torch.empty(0, 3))
    for part in range(0, 50, 10):
        draw = merge_draw(draw, keys[part : part + 10], x[part : part + 10], num_drawn=12)
    best = keys.argsort(descending=True)[:12]
    assert torch.equal(draw.keys, keys[best])
    assert torch.equal(draw.x, x[best])


def test_replaced_latents_point_at_the_inputs_with_the_scaled_mean_norm_of_alive_columns():
    sae = _sae()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    replace_latents(sae, torch.tensor([1, 2]), torch.tensor([[0.6, 0.8], [1.0, 0.0]]), alive=ALIVE, encoder_scale=0.2)
    # Alive columns have norms 5 and 10: mean 7.5, times 0.2 is 1.5.
    torch.testing.assert_close(sae.W_enc.detach(), torch.tensor([[3.0, 0.9, 1.5, 6.0], [4.0, 1.2, 0.0, 8.0]]))
    assert sae.W_dec[1:3].tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [1.0, 0.0]]
    torch.testing.assert_close(sae.b_enc.detach(), torch.tensor([0.1, 0.0, 0.0, 0.4]))
    assert torch.equal(sae.W_dec[[0, 3]], before["W_dec"][[0, 3]])
    assert torch.equal(sae.b_dec, before["b_dec"])


def test_without_an_alive_latent_the_mean_norm_is_that_of_all():
    sae = _sae()
    replace_latents(
        sae, torch.tensor([0]), torch.tensor([[1.0, 0.0]]), alive=torch.zeros(4, dtype=torch.bool), encoder_scale=1.0
    )
    assert sae.W_enc[:, 0].tolist() == [pytest.approx((5 + 1 + 1 + 10) / 4), 0]


@pytest.mark.parametrize(
    ("option", "alive", "expected"), [("alive_mean", ALIVE, 2.5), ("zero", ALIVE, 0.0), ("alive_mean", ~ALIVE & ALIVE, 0.0)]
)
def test_moments_of_replaced_entries_become_0_and_the_mean_over_alive_entries(option, alive, expected):
    sae = _sae()
    adam = Adam(sae, TrainingConfig(), eps=1e-8)
    tensors = adam.tensors()
    for name, tensor in tensors.items():
        tensor.fill_(9.0 if "exp_avg." in name else 7.0)
    for name, index in (("W_enc", (slice(None), ALIVE)), ("W_dec", (ALIVE,)), ("b_enc", (ALIVE,))):
        shape = tensors[f"exp_avg_sq.{name}"][index].shape
        tensors[f"exp_avg_sq.{name}"][index] = torch.linspace(1, 4, math.prod(shape)).reshape(shape)
    alive_before = tensors["exp_avg_sq.W_enc"][:, ALIVE].clone()
    reset_moments(adam, torch.tensor([1, 2]), alive=alive, second_moment=option)
    for name, index in (("W_enc", (slice(None), ~ALIVE)), ("W_dec", (~ALIVE,)), ("b_enc", (~ALIVE,))):
        assert (tensors[f"exp_avg.{name}"][index] == 0).all()
        torch.testing.assert_close(
            tensors[f"exp_avg_sq.{name}"][index], torch.full_like(tensors[f"exp_avg_sq.{name}"][index], expected)
        )
    assert torch.equal(tensors["exp_avg_sq.W_enc"][:, ALIVE], alive_before)
    assert (tensors["exp_avg.W_dec"][ALIVE] == 9).all()
    assert (tensors["exp_avg.b_dec"] == 9).all()
    assert (tensors["exp_avg_sq.b_dec"] == 7).all()


def _resample(x: torch.Tensor, dead: list[bool], *, batch: int = 4, **options) -> tuple[SparseAutoencoder, dict[str, float]]:
    sae = _sae()
    adam = Adam(sae, TrainingConfig(), eps=1e-8)
    resampler = Resampler(sae, torch.tensor(dead), ResamplingConfig(**options), generator=seeded_generator("test"))
    for part in x.split(batch):
        resampler.read(part)
    return sae, resampler.replace(adam)


def test_a_resampling_replaces_by_distinct_directions_of_raw_inputs():
    x = 100 * torch.randn(12, 2, generator=torch.Generator().manual_seed(2))
    sae, event = _resample(x, [False, True, True, True])
    assert event == {"num_dead": 3, "num_candidates": 12, "num_resampled": 3}
    matches = ((x / x.norm(dim=1, keepdim=True))[:, None] - sae.W_dec[None, 1:]).abs().sum(2) < 1e-6
    assert matches.any(0).all()
    assert len(set(matches.float().argmax(0).tolist())) == 3


def test_the_batches_may_be_cut_in_any_way_only_the_draws_order_matters():
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(2))
    assert torch.equal(_resample(x, [True] * 4, batch=4)[0].W_dec, _resample(x, [True] * 4, batch=12)[0].W_dec)


def test_with_fewer_candidates_than_dead_latents_as_many_as_there_are_get_replaced():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3000.0, 0.0], [0.0, -2.0]])
    before = _sae()
    sae, event = _resample(x, [True, True, True, False])
    assert event == {"num_dead": 3, "num_candidates": 2, "num_resampled": 2}
    found = sorted([round(v, 5) for v in row] for row in sae.W_dec[:2].tolist())
    assert found == [[0.0, -1.0], [0.6, 0.8]]
    assert torch.equal(sae.W_dec[2:], before.W_dec[2:])
    assert torch.equal(sae.W_enc[:, 2:], before.W_enc[:, 2:])


def test_without_dead_latents_nothing_changes():
    sae, event = _resample(torch.randn(8, 2), [False] * 4)
    assert event == {"num_dead": 0, "num_candidates": 0, "num_resampled": 0}
    assert all(torch.equal(a, b) for a, b in zip(sae.parameters(), _sae().parameters(), strict=True))


def test_notes_say_once_that_the_window_is_short_and_each_time_that_candidates_were_few():
    event = {"num_dead": 3, "num_candidates": 2, "num_resampled": 2, "window_tokens": 500, "window_unresolved": 1}
    first = resampling_notes(10, event, dead_frequency=3e-6, earlier=[])
    assert len(first) == 2
    assert "500 tokens cannot resolve" in first[0]
    assert "3 latents were dead, but only 2 inputs" in first[1]
    assert len(resampling_notes(20, event, dead_frequency=3e-6, earlier=first)) == 1
    fine = {**event, "num_resampled": 3, "window_unresolved": 0}
    assert resampling_notes(20, fine, dead_frequency=3e-6, earlier=[]) == []
