import hashlib
import json
import random
from pathlib import Path

import pytest
import torch

from prolu_tune.config.trial import SaeConfig, TrialConfig
from prolu_tune.errors import InputError
from prolu_tune.sae import SparseAutoencoder
from prolu_tune.sae.folder import CONFIG_NAME, TENSORS_NAME, load_sae_folder, read_sae_config, save_sae

CONFIG = TrialConfig(sae=SaeConfig(nonlinearity="prolu_ste", penalty="sqrt_l1", normalization="none"))


def _sae(seed: int = 0) -> SparseAutoencoder:
    return SparseAutoencoder(CONFIG.sae, 4, 9, generator=torch.Generator().manual_seed(seed))


def _save(folder: Path, seed: int = 0) -> Path:
    return save_sae(
        _sae(seed),
        folder,
        config=CONFIG.model_dump(mode="json"),
        versions={"torch": "1"},
        metrics={"l0": 3.5, "fvu": float("nan")},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _save(tmp_path / "runs" / "sae")


def _change_config(folder: Path, **changes) -> None:
    document = {**json.loads((folder / CONFIG_NAME).read_text()), **changes}
    del document["config_sha256"]
    digest = hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    (folder / CONFIG_NAME).write_text(json.dumps({**document, "config_sha256": digest}))


def test_what_is_saved_is_loaded_to_the_last_bit(folder):
    loaded = load_sae_folder(folder)
    assert loaded.config == CONFIG.sae
    for name, tensor in _sae().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    x = torch.randn(3, 4)
    assert torch.equal(loaded(x), _sae()(x))


def test_the_tensors_file_itself_may_be_named(folder):
    assert load_sae_folder(folder / TENSORS_NAME).d_sae == 9


def test_config_json_holds_configuration_versions_and_metrics(folder):
    document = read_sae_config(folder)
    assert TrialConfig.model_validate(document["config"]) == CONFIG
    assert document["versions"] == {"torch": "1"}
    assert document["metrics"] == {"l0": 3.5, "fvu": None}
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_NAME, TENSORS_NAME]


def test_saving_again_replaces_the_folder_and_leftovers_of_a_kill_do_not_hinder(folder):
    for leftover in ("sae.tmp", "sae.old"):
        (folder.parent / leftover).mkdir()
        (folder.parent / leftover / "half").write_text("x")
    _save(folder, seed=1)
    assert torch.equal(load_sae_folder(folder).W_enc, _sae(1).W_enc)
    assert [path.name for path in folder.parent.iterdir()] == ["sae"]


def test_loading_does_not_touch_torchs_own_generator(folder):
    before = torch.get_rng_state()
    load_sae_folder(folder)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_sae": 10}, "W_enc is"),
        ({"d_in": 2**31 - 1, "d_sae": 2**31 - 1}, "W_enc is"),
        ({"d_in": 2**31}, "d_in in config.json must be"),
        ({"d_in": True}, "d_in in config.json must be"),
        ({"d_in": -4}, "d_in in config.json must be"),
        ({"d_sae": "9"}, "d_sae in config.json must be"),
        ({"format": 3}, "names format 3, this version reads 1 and 2"),
        ({"config": []}, "lacks the section config.sae"),
        ({"config": {"sae": {"nonlinearity": "exec"}}}, "config.sae.nonlinearity in config.json: Value error, 'exec' is not"),
        ({"config": {"sae": {"surprise": 1}}}, "config.sae.surprise"),
        ({"sha256": "0" * 64}, "does not have the SHA-256"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder, changes, message):
    _change_config(folder, **changes)
    with pytest.raises(InputError, match=message):
        load_sae_folder(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"nothing", b"[" * 500_000, b" " * 1_000_001, b"\xff\xfe", b'{"format": 1}', b'{"d_in":' + b"9" * 9000 + b"}"],
)
def test_a_hostile_config_json_is_refused(folder, content):
    (folder / CONFIG_NAME).write_bytes(content)
    with pytest.raises(InputError, match="is not a usable autoencoder"):
        load_sae_folder(folder)


def test_missing_files_and_folders_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        load_sae_folder(tmp_path / "nowhere")
    (folder / TENSORS_NAME).unlink()
    with pytest.raises(InputError, match="No such file"):
        load_sae_folder(folder)
    (folder / CONFIG_NAME).unlink()
    with pytest.raises(InputError, match="No such file"):
        load_sae_folder(folder)


def test_every_cut_and_any_flipped_byte_of_the_tensors_is_refused(folder):
    path = folder / TENSORS_NAME
    whole = path.read_bytes()
    draw = random.Random(0)
    damaged = [whole[:n] for n in range(0, len(whole), 7)]
    # Byte 8 + header on is data; before it a flip is caught by the header's check, behind it by the SHA-256.
    for position in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << draw.randrange(8)
        damaged.append(bytes(flipped))
    for content in damaged:
        path.write_bytes(content)
        try:
            loaded = load_sae_folder(folder)
        except InputError:
            continue
        # A flip in the header's metadata or padding that leaves valid JSON changes no tensor.
        assert torch.equal(loaded.W_enc, _sae().W_enc)
        assert torch.equal(loaded.W_dec, _sae().W_dec)


def test_a_folder_of_format_1_which_had_no_checksum_of_its_config_is_still_read(folder):
    document = json.loads((folder / CONFIG_NAME).read_text())
    del document["config_sha256"]
    (folder / CONFIG_NAME).write_text(json.dumps(document | {"format": 1}))
    assert torch.equal(load_sae_folder(folder).W_dec, _sae().W_dec)
