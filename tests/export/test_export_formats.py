import json
from pathlib import Path

import numpy as np
import pytest
import torch
from export_samples import ARCHITECTURES, D_IN, D_SAE, save_sample, tokens
from safetensors.numpy import load_file

from prolu_tune.errors import InputError
from prolu_tune.export import FORMATS, export_folder
from prolu_tune.export.dictionary_learning import locate
from prolu_tune.export.source import is_hub_name
from prolu_tune.sae.folder import load_sae_folder


def jumprelu(x: np.ndarray, w: dict[str, np.ndarray], *, subtract: bool, per_token: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns (acts, recon) in float64 of what SAELens and dictionary_learning document, from the exported arrays alone."""
    w = {name: value.astype(np.float64) for name, value in w.items()}
    x = x.astype(np.float64)
    factor = np.sqrt(x.shape[1]) / np.linalg.norm(x, axis=1, keepdims=True) if per_token else np.ones((len(x), 1))
    pre = (x * factor - (w["b_dec"] if subtract else 0)) @ w["W_enc"] + w["b_enc"]
    acts = np.maximum(pre, 0) * (pre > w.get("threshold", 0.0))
    return acts, (acts @ w["W_dec"] + w["b_dec"]) / factor


def assert_same(acts: np.ndarray, recon: np.ndarray, folder: Path, x: np.ndarray, *, normalized_inputs: bool = False) -> None:
    """Equal gates, and equal activations and reconstructions to float32 rounding, with those of our own folder."""
    sae = load_sae_folder(folder)
    with torch.no_grad():
        ours_acts, ours_recon = sae.encode(torch.from_numpy(x)).numpy(), sae(torch.from_numpy(x)).numpy()
        if normalized_inputs:
            ours_recon = sae.decode(sae.encode(torch.from_numpy(x))).numpy()
    assert 0.02 < (ours_acts > 0).mean() < 0.5, "the sample must have gates of both kinds"
    assert np.array_equal(acts > 0, ours_acts > 0)
    np.testing.assert_allclose(acts, ours_acts, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(recon, ours_recon, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize(("nonlinearity", "penalty"), ARCHITECTURES)
@pytest.mark.parametrize("normalization", ["per_token", "none"])
def test_a_saelens_folder_computes_what_the_autoencoder_does(tmp_path, nonlinearity, penalty, normalization):
    save_sample(tmp_path / "sae", nonlinearity, penalty, normalization=normalization)
    export_folder(tmp_path / "sae", tmp_path / "out", format_name="saelens")
    cfg = json.loads((tmp_path / "out" / "cfg.json").read_text())
    weights = load_file(tmp_path / "out" / "sae_weights.safetensors")
    assert cfg["architecture"] == ("standard" if nonlinearity == "relu" else "jumprelu")
    assert ("threshold" in weights) == (nonlinearity != "relu")
    assert weights["W_enc"].shape == (D_IN, D_SAE) and weights["W_dec"].shape == (D_SAE, D_IN)
    per_token = cfg["normalize_activations"] == "constant_norm_rescale"
    assert per_token == (normalization == "per_token") and cfg["apply_b_dec_to_input"] is True
    x = tokens()
    acts, recon = jumprelu(x, weights, subtract=True, per_token=per_token)
    assert_same(acts, recon, tmp_path / "sae", x)


def test_saelens_metadata_says_where_the_autoencoder_belongs(tmp_path):
    save_sample(tmp_path / "sae", "prolu_ste", "sqrt_l1")
    export_folder(tmp_path / "sae", tmp_path / "out", format_name="saelens")
    metadata = json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]
    assert metadata["sae_lens_version"] >= "6.0.0"
    assert metadata["model_name"] == "gpt2" and metadata["hook_name"] == "blocks.6.hook_resid_pre"
    assert metadata["context_size"] == 64 and metadata["dataset_path"] == "some/text" and metadata["prepend_bos"] is True
    assert metadata["model_from_pretrained_kwargs"]["center_writing_weights"] is True
    assert metadata["prolu_tune"]["architecture"] == "prolu_ste+sqrt_l1"
    assert metadata["prolu_tune"]["metrics"]["l0"] == 12.5 and metadata["prolu_tune"]["metrics"]["fvu"] is None


@pytest.mark.parametrize(("nonlinearity", "penalty"), ARCHITECTURES)
@pytest.mark.parametrize("normalized_inputs", [False, True])
def test_a_dictionary_learning_folder_computes_what_the_autoencoder_does(tmp_path, nonlinearity, penalty, normalized_inputs):
    save_sample(tmp_path / "sae", nonlinearity, penalty, normalization="per_token" if normalized_inputs else "none")
    export_folder(tmp_path / "sae", tmp_path / "out", format_name="dictionary_learning", normalized_inputs=normalized_inputs)
    state = torch.load(tmp_path / "out" / "ae.pt", weights_only=True)
    trainer = json.loads((tmp_path / "out" / "config.json").read_text())["trainer"]
    x = tokens()
    if normalized_inputs:
        x = (x / np.linalg.norm(x, axis=1, keepdims=True) * np.sqrt(D_IN)).astype(np.float32)
    if nonlinearity == "relu":
        assert trainer["dict_class"] == "AutoEncoder"
        weights = {
            "W_enc": state["encoder.weight"].numpy().T,
            "b_enc": state["encoder.bias"].numpy(),
            "W_dec": state["decoder.weight"].numpy().T,
            "b_dec": state["bias"].numpy(),
        }
    else:
        assert trainer["dict_class"] == "JumpReluAutoEncoder"
        weights = {name: value.numpy() for name, value in state.items()}
    acts, recon = jumprelu(x, weights, subtract=nonlinearity == "relu", per_token=False)
    assert_same(acts, recon, tmp_path / "sae", x, normalized_inputs=normalized_inputs)


def test_per_token_normalisation_is_refused_for_dictionary_learning_with_the_reason(tmp_path):
    save_sample(tmp_path / "sae", "prolu_relu")
    with pytest.raises(InputError, match=r"per_token.*cannot be folded into weights.*--normalized-inputs"):
        export_folder(tmp_path / "sae", tmp_path / "out", format_name="dictionary_learning")
    assert list(tmp_path.iterdir()) == [tmp_path / "sae"]


def test_relu_rows_that_are_not_of_unit_norm_are_refused_for_dictionary_learning(tmp_path):
    from prolu_tune.sae.folder import save_sae

    sae = save_sample(tmp_path / "sae", "relu", normalization="none")
    with torch.no_grad():
        sae.W_dec[3] *= 2
    config = json.loads((tmp_path / "sae" / "config.json").read_text())["config"]
    save_sae(sae, tmp_path / "sae", config=config, versions={}, metrics={})
    with pytest.raises(InputError, match="norm 2 instead of 1"):
        export_folder(tmp_path / "sae", tmp_path / "out", format_name="dictionary_learning")


@pytest.mark.parametrize(
    ("hook_name", "place"),
    [
        ("blocks.6.hook_resid_pre", (5, "resid_post")),
        ("blocks.6.hook_resid_post", (6, "resid_post")),
        ("blocks.0.hook_mlp_out", (0, "mlp_out")),
        ("blocks.3.hook_attn_out", (3, "attn_out")),
    ],
)
def test_hooks_are_counted_by_outputs_in_dictionary_learning(hook_name, place):
    assert locate(hook_name) == place


@pytest.mark.parametrize(
    "hook_name", ["blocks.0.hook_resid_pre", "hook_embed", "blocks.2.hook_resid_mid", "blocks.2.mlp.hook_post"]
)
def test_hooks_that_are_no_output_of_a_layer_are_refused_for_dictionary_learning(hook_name):
    with pytest.raises(InputError, match=f"{hook_name}.*--format saelens"):
        locate(hook_name)


@pytest.mark.parametrize(("nonlinearity", "penalty"), ARCHITECTURES)
def test_our_own_folder_is_loaded_to_the_last_bit(tmp_path, nonlinearity, penalty):
    sae = save_sample(tmp_path / "sae", nonlinearity, penalty)
    export_folder(tmp_path / "sae", tmp_path / "out", format_name="prolu")
    loaded = load_sae_folder(tmp_path / "out")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in sae.state_dict().items())
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("sae", "out"))
    assert before == after


@pytest.mark.parametrize("format_name", FORMATS)
def test_every_folder_has_a_card_with_the_loading_lines_and_the_metrics(tmp_path, format_name):
    save_sample(tmp_path / "sae", "prolu_ste", normalization="none")
    export_folder(tmp_path / "sae", tmp_path / "ste-1", format_name=format_name)
    card = (tmp_path / "ste-1" / "README.md").read_text()
    assert card.startswith("---\ntags:\n") and "base_model: gpt2" in card
    assert "'ste-1'" in card and "| L0 | 12.5 |" in card and "prolu_ste+l1, coefficient 0.32, seed 3" in card
    assert "FVU" not in card, "what was not measured is left out"
    assert str(tmp_path) not in card


def test_a_folder_that_is_there_is_replaced_only_when_asked(tmp_path):
    save_sample(tmp_path / "sae", "relu")
    (tmp_path / "out").mkdir()
    export_folder(tmp_path / "sae", tmp_path / "out", format_name="saelens")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        export_folder(tmp_path / "sae", tmp_path / "out", format_name="saelens")
    assert (tmp_path / "out" / "notes.txt").exists()
    export_folder(tmp_path / "sae", tmp_path / "out", format_name="prolu", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "config.json", "sae.safetensors"]


def test_a_folder_is_not_exported_onto_itself(tmp_path):
    save_sample(tmp_path / "sae", "relu")
    with pytest.raises(InputError, match="is the folder that would be exported"):
        export_folder(tmp_path / "sae", tmp_path / "sae", format_name="prolu", overwrite=True)
    assert load_sae_folder(tmp_path / "sae").d_sae == D_SAE


def test_a_local_model_is_named_without_its_path(tmp_path):
    from prolu_tune.sae.folder import save_sae

    sae = save_sample(tmp_path / "sae", "relu")
    config = json.loads((tmp_path / "sae" / "config.json").read_text())["config"]
    config["activations"] |= {"model": "/home/someone/models/tiny-lm", "dataset": "/home/someone/text.parquet"}
    save_sae(sae, tmp_path / "sae", config=config, versions={}, metrics={})
    export_folder(tmp_path / "sae", tmp_path / "out", format_name="saelens")
    written = "".join((tmp_path / "out" / name).read_text() for name in ("cfg.json", "README.md"))
    assert "tiny-lm" in written and "text.parquet" in written and "someone" not in written


@pytest.mark.parametrize(
    ("name", "named"),
    [("gpt2", True), ("HuggingFaceTB/SmolLM2-135M", True), ("embedded", False), ("/models/gpt2", False), ("a" * 5000, False)],
)
def test_a_hub_name_is_told_from_a_path_and_from_what_no_file_system_takes(name: str, named: bool) -> None:
    assert is_hub_name(name) is named
