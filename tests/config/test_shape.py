"""What a model's configuration file tells: sizes, the width of a hook, wrong hooks and folders."""

import json
from pathlib import Path

import pytest

from prolu_tune.config.shape import check_dataset_exists, hook_width, model_shape
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError


def test_gpt2_is_known_without_a_network() -> None:
    shape = model_shape(ActivationConfig(model="gpt2"))
    assert shape is not None
    assert (shape.d_model, shape.num_layers, shape.d_mlp) == (768, 12, 3072)
    assert shape.num_parameters == pytest.approx(124e6, rel=0.02)


def test_a_folder_is_read_and_an_unknown_hub_name_is_left_open(tmp_path: Path) -> None:
    config = {"hidden_size": 576, "num_hidden_layers": 30, "intermediate_size": 1536, "vocab_size": 49152}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = model_shape(ActivationConfig(model=str(tmp_path)))
    assert shape is not None and (shape.d_model, shape.num_layers, shape.vocab_size) == (576, 30, 49152)
    assert model_shape(ActivationConfig(model="some-one/some-model")) is None


@pytest.mark.parametrize("text", [None, "{", '{"hidden": 3}', "[]", "3"])
def test_a_folder_without_a_usable_configuration_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"activations\.model"):
        model_shape(ActivationConfig(model=str(tmp_path)))


def test_a_missing_model_folder_and_a_missing_data_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        model_shape(ActivationConfig(model=str(tmp_path / "missing")))
    for name in (str(tmp_path / "missing"), "missing.parquet", "./missing"):
        with pytest.raises(InputError, match="no such file or folder"):
            check_dataset_exists(ActivationConfig(dataset=name))
    check_dataset_exists(ActivationConfig(dataset="some-one/some-data"))
    check_dataset_exists(ActivationConfig(dataset="embedded"))


def test_a_hook_of_the_residual_stream_has_its_width_and_others_are_left_to_the_model() -> None:
    shape = model_shape(ActivationConfig(model="gpt2"))
    assert shape is not None
    assert hook_width("blocks.11.hook_resid_post", shape) == 768
    assert hook_width("blocks.3.mlp.hook_post", shape) is None


@pytest.mark.parametrize(
    ("hook_name", "meant"),
    [
        ("blocks.12.hook_resid_pre", "blocks.11.hook_resid_pre"),
        ("blocks.6.hook_resd_pre", "blocks.6.hook_resid_pre"),
        ("blocks.6.resid_pre", "blocks.6.hook_resid_pre"),
    ],
)
def test_a_wrong_hook_names_the_close_one(hook_name: str, meant: str) -> None:
    shape = model_shape(ActivationConfig(model="gpt2"))
    assert shape is not None
    with pytest.raises(InputError, match=f"did you mean {meant}"):
        hook_width(hook_name, shape)
