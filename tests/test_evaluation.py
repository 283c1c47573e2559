import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from prolu_tune import metrics
from prolu_tune.activations.source import ActivationSource
from prolu_tune.config.trial import ActivationConfig, SaeConfig
from prolu_tune.errors import InputError
from prolu_tune.evaluation import EvaluationData, evaluate_sae, evaluate_saes, measure_baseline, metric_names
from prolu_tune.sae.model import SparseAutoencoder

pytest_plugins = ("tiny_language_models",)
NUM_ROWS = 16

Make = Callable[..., ActivationConfig]
DataOf = Callable[..., EvaluationData]


class Perfect(SparseAutoencoder):
    """An autoencoder whose reconstruction is its input."""

    def decode_normalized(self, acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_in"]:
        return self._seen

    def encode_normalized(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        self._seen = x
        return super().encode_normalized(x)


class Silent(SparseAutoencoder):
    """An autoencoder whose reconstruction is zero."""

    def decode_normalized(self, acts: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_in"]:
        return acts.new_zeros(len(acts), self.d_in)


def make_sae(kind: type[SparseAutoencoder] = SparseAutoencoder, *, seed: int = 0, d_in: int = 32) -> SparseAutoencoder:
    sae = kind(SaeConfig(nonlinearity="prolu_ste"), d_in, 96, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        sae.b_enc.uniform_(-1, 0.5, generator=torch.Generator().manual_seed(seed + 1))
    return sae


@pytest.fixture
def data_of(make_config: Make, tmp_path: Path) -> DataOf:
    def data(*, num_tokens: int = NUM_ROWS * 16, say: Any = None, **changes: Any) -> EvaluationData:
        source = ActivationSource(make_config(**changes), cache_dir=tmp_path, say=say or (lambda _: None))
        return EvaluationData(source, num_tokens=num_tokens)

    return data


def naive(data: EvaluationData, sae: SparseAutoencoder, *, keep_bos: bool) -> dict[str, float]:
    """Returns the metrics from one full pass over all rows at once, by a hook of its own and no cache."""
    model = data.source.language_model
    tokens = torch.from_numpy(data.tokens).long()
    found: list[Tensor] = []

    def splice(x: Tensor, hook: Any) -> Tensor:
        found.append(x)
        recon = sae(x.half().float())  # the cache holds float16
        if keep_bos:
            recon[:, 0] = x[:, 0]
        return recon

    with torch.no_grad():
        logits = model.bridge.run_with_hooks(tokens, fwd_hooks=[(model._hook, splice)], return_type="logits")
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()
    x = sae.normalize(found[0].half().float().flatten(0, 1)).x
    with torch.no_grad():
        acts = sae.encode_normalized(x)
        recon = sae.decode_normalized(acts)
    return {
        "loss": loss,
        "l0": (acts > 0).sum(1).double().mean().item(),
        "l1": acts.sum(1).mean().item(),
        "sqrt_l1": acts.sqrt().sum(1).mean().item(),
        "mse": (recon - x).square().mean().item(),
        "fvu": ((recon - x).square().sum() / (x - x.mean(0)).square().sum()).item(),
        "relative_norm": (recon.norm(dim=1) / x.norm(dim=1)).mean().item(),
        "frac_alive": (acts > 0).any(0).double().mean().item(),
        "magnitude_slope": naive_slope(x, acts, recon, sae.W_dec.detach()),
    }


def naive_slope(x: Tensor, acts: Tensor, recon: Tensor, W_dec: Tensor) -> float:
    """Returns the slope of reconstructed over true magnitudes, latent by latent with numpy's covariance."""
    top = bottom = 0.0
    for i, direction in enumerate(W_dec / W_dec.norm(dim=1, keepdim=True)):
        active = acts[:, i] > 0
        if active.sum() > 1:
            a = acts[active, i] * W_dec[i].norm()
            m = a + (x - recon)[active] @ direction
            (_, both), (_, own) = np.cov(np.stack([a, m]), bias=True) * len(a)
            top, bottom = top + both, bottom + own
    return top / bottom


@pytest.mark.parametrize("hook", ["blocks.2.hook_resid_pre", "blocks.1.hook_mlp_out"])
def test_metrics_are_those_of_a_full_pass_without_any_cache(data_of: DataOf, hook: str) -> None:
    data, sae = data_of(hook_name=hook), make_sae()
    got = evaluate_sae(sae, data)
    expected = naive(data, sae, keep_bos=False)
    for name in ("l0", "l1", "sqrt_l1", "mse", "fvu", "relative_norm", "frac_alive", "magnitude_slope"):
        assert got[name] == pytest.approx(expected[name], rel=1e-4), name
    assert got["ce_loss_with_sae"] == pytest.approx(expected["loss"], rel=1e-5)
    assert got["ce_loss_with_sae_bos_kept"] == pytest.approx(naive(data, sae, keep_bos=True)["loss"], rel=1e-5)
    assert got["ce_loss_clean_bos_kept"] == got["ce_loss_clean"]  # so few rows are all measured with BOS kept too
    assert got["ce_loss_with_sae"] != got["ce_loss_with_sae_bos_kept"]
    assert got["frac_negative_bias"] == (sae.b_enc < 0).double().mean().item()
    for suffix in ("", "_bos_kept"):
        spliced, zero = got[f"ce_loss_with_sae{suffix}"], got[f"ce_loss_zero{suffix}"]
        assert got[f"ce_degradation{suffix}"] == spliced - got[f"ce_loss_clean{suffix}"]
        assert got[f"ce_loss_score{suffix}"] == (zero - spliced) / (zero - got[f"ce_loss_clean{suffix}"])
    assert got["tokens"] == NUM_ROWS * 16


def test_bos_is_kept_on_the_first_of_many_rows_only(data_of: DataOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prolu_tune.evaluation.MIN_BOS_KEPT_ROWS", 5)
    data, few, sae = data_of(num_tokens=80 * 16), data_of(num_tokens=10 * 16), make_sae()
    assert (data.num_bos_kept_rows, few.num_bos_kept_rows) == (10, 5)
    monkeypatch.setattr("prolu_tune.evaluation.MIN_BOS_KEPT_ROWS", 10)
    names = [f"ce_{name}_bos_kept" for name in ("loss_clean", "loss_zero", "loss_with_sae", "degradation")]
    got, alone = evaluate_sae(sae, data), evaluate_sae(sae, few)
    assert [got[name] for name in names] == pytest.approx([alone[name] for name in names], rel=1e-6)
    assert alone["ce_loss_clean_bos_kept"] == alone["ce_loss_clean"] != got["ce_loss_clean"]


def test_a_perfect_autoencoder_loses_nothing_and_a_silent_one_all(data_of: DataOf) -> None:
    perfect, silent = evaluate_saes([make_sae(Perfect), make_sae(Silent)], data_of())
    assert perfect["ce_degradation"] == pytest.approx(0, abs=1e-4)
    assert (perfect["mse"], perfect["fvu"]) == (0, 0)
    assert perfect["ce_loss_score"] == pytest.approx(1, abs=1e-3)
    assert silent["ce_loss_with_sae"] == pytest.approx(silent["ce_loss_zero"], rel=1e-6)
    assert silent["ce_loss_with_sae_bos_kept"] == silent["ce_loss_zero_bos_kept"] != silent["ce_loss_zero"]
    assert silent["ce_loss_score"] == pytest.approx(0, abs=1e-5)


def test_many_at_once_get_what_each_gets_alone(data_of: DataOf) -> None:
    data, saes = data_of(), [make_sae(seed=seed) for seed in range(3)]
    assert evaluate_saes(saes, data) == [evaluate_sae(sae, data) for sae in saes]


def test_only_what_is_asked_for_is_measured_and_without_a_loss_the_model_stops_at_the_hook(data_of: DataOf) -> None:
    data, saes = data_of(), [make_sae(seed=seed) for seed in range(2)]
    whole = evaluate_saes(saes, data)
    assert set(whole[0]) == {*metric_names(), "tokens"}
    before = data.source.language_model.tokens_processed
    some = evaluate_saes(saes, data, names=["mse", "magnitude_slope", "frac_negative_bias"])
    assert data.source.language_model.tokens_processed == before
    for few, all_ in zip(some, whole, strict=True):
        assert few == {name: all_[name] for name in ("mse", "magnitude_slope", "frac_negative_bias", "tokens")}
    lost = evaluate_saes(saes, data, names=["ce_degradation"])
    assert [set(record) for record in lost] == [{"ce_degradation", "tokens"}] * 2
    assert lost[0]["ce_degradation"] == whole[0]["ce_degradation"]


def test_each_autoencoder_costs_two_passes_of_the_layers_after_the_hook(data_of: DataOf) -> None:
    data = data_of(hook_name="blocks.2.hook_resid_pre")
    baseline = measure_baseline(data)
    model, size = data.source.language_model, data.num_tokens
    before = model.tokens_processed
    blocks: list[int] = []
    handles = [model.bridge.blocks[i].mlp.register_forward_hook(lambda *_args, layer=i: blocks.append(layer)) for i in range(3)]
    evaluate_saes([make_sae(), make_sae(seed=1)], data, baseline=baseline)
    for handle in handles:
        handle.remove()
    assert model.tokens_processed - before == 2 * 2 * size
    assert set(blocks) == {2}


def test_the_baseline_is_measured_once_and_found_on_disk(data_of: DataOf, tmp_path: Path) -> None:
    data = data_of()
    told: list[tuple[int, int]] = []
    first = measure_baseline(data, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (data.num_tokens, data.num_tokens)
    tokens = torch.from_numpy(data.tokens).long()
    loss = data.source.language_model.bridge(tokens, return_type="loss").item()
    assert first.ce_loss_clean == pytest.approx(loss, rel=1e-5)
    again = data_of()
    assert measure_baseline(again) == first
    assert again.source._model is None
    assert measure_baseline(data_of(num_tokens=160)) != first


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', json.dumps({"format": 0, "ce_loss_clean": 1.0})])
def test_a_damaged_baseline_is_measured_again_and_said(data_of: DataOf, tmp_path: Path, content: str) -> None:
    first = measure_baseline(data_of())
    (file,) = (tmp_path / "baselines").glob("*.json")
    file.write_text(content)
    said: list[str] = []
    assert measure_baseline(data_of(say=said.append)) == first
    assert ["clean and zero losses are measured again" in message for message in said] == [True]


def test_a_damaged_activation_file_is_computed_again_and_said(data_of: DataOf, tmp_path: Path) -> None:
    sae = make_sae()
    first = evaluate_sae(sae, data_of())
    (file,) = (tmp_path / "chunks").glob("*/eval-*.arrow")
    data = bytearray(file.read_bytes())
    data[-700] ^= 1
    file.unlink()
    file.write_bytes(data)
    said: list[str] = []
    assert evaluate_sae(sae, data_of(say=said.append)) == first
    assert any("damaged activation cache file" in message for message in said)


def test_positions_left_out_of_the_stream_are_left_out_of_the_averages(data_of: DataOf) -> None:
    data, sae = data_of(train_on_bos=False), make_sae()
    x = data.source.language_model.activations(torch.from_numpy(data.tokens))[:, 1:].half().float()
    acts = sae.encode(x.flatten(0, 1))
    assert evaluate_sae(sae, data)["l0"] == pytest.approx(metrics.l0(acts).double().mean().item(), rel=1e-6)
    assert evaluate_sae(sae, data)["l0"] != evaluate_sae(sae, data_of())["l0"]


def test_without_overwriting_bos_stands_where_its_id_stands(data_of: DataOf) -> None:
    data = data_of(overwrite_bos=False)
    rows = torch.from_numpy(data.tokens)
    assert torch.equal(data.bos(rows), rows == 0)
    assert 0 < data.bos(rows).sum() < len(rows) * 16


def test_too_few_held_out_rows_and_a_wrong_width_are_refused(data_of: DataOf) -> None:
    with pytest.raises(
        InputError, match=r"num_tokens is 10,000,000, but .*eval_range \[0\.6, 1\.0\] of .* holds [\d,]+ tokens; lower it"
    ):
        data_of(num_tokens=10_000_000)
    with pytest.raises(InputError, match=r"reads activations 16 wide, but blocks\.1\.hook_resid_pre of .* is 32 wide"):
        evaluate_sae(make_sae(d_in=16), data_of())
