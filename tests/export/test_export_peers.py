"""Round trips through the real SAELens and dictionary_learning, in an environment of their own (`make test-exports`)."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from export_samples import ARCHITECTURES, D_IN, save_sample, tokens
from test_export_formats import assert_same

from prolu_tune.export import export_folder

PEERS = Path(os.environ.get("PROLU_PEERS_PYTHON") or Path(__file__).parents[2] / ".venv-peers" / "bin" / "python")
READER = Path(__file__).with_name("peers_reader.py")

pytestmark = pytest.mark.skipif(not PEERS.exists(), reason=f"no {PEERS}; make it with `make test-exports`")


def read_by_peer(kind: str, place: str, x: np.ndarray, folder: Path, **environment: str) -> tuple[dict, np.ndarray, np.ndarray]:
    """Returns (metadata, acts, recon) as the other tool has them."""
    np.save(folder / "x.npy", x)
    done = subprocess.run(
        [str(PEERS), str(READER), kind, place, str(folder / "x.npy"), str(folder / "out.npz")],
        capture_output=True,
        text=True,
        env={**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", **environment},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    arrays = np.load(folder / "out.npz")
    return json.loads(done.stdout.splitlines()[-1]), arrays["acts"], arrays["recon"]


@pytest.mark.parametrize(("nonlinearity", "penalty"), ARCHITECTURES)
def test_saelens_loads_and_computes_the_same(tmp_path, nonlinearity, penalty):
    save_sample(tmp_path / "sae", nonlinearity, penalty)
    export_folder(tmp_path / "sae", tmp_path / "out", format_name="saelens")
    x = tokens()
    metadata, acts, recon = read_by_peer("saelens", str(tmp_path / "out"), x, tmp_path)
    assert metadata["class"] == ("StandardSAE" if nonlinearity == "relu" else "JumpReLUSAE")
    assert metadata["normalize"] == "constant_norm_rescale"
    assert metadata["model_name"] == "gpt2" and metadata["hook_name"] == "blocks.6.hook_resid_pre"
    assert metadata["prolu_tune"]["architecture"] == f"{nonlinearity}+{penalty}"
    assert_same(acts, recon, tmp_path / "sae", x)


@pytest.mark.parametrize(("nonlinearity", "penalty"), ARCHITECTURES)
def test_dictionary_learning_loads_and_computes_the_same(tmp_path, nonlinearity, penalty):
    save_sample(tmp_path / "sae", nonlinearity, penalty, normalization="none")
    export_folder(tmp_path / "sae", tmp_path / "out", format_name="dictionary_learning")
    x = tokens()
    metadata, acts, recon = read_by_peer("dictionary_learning", str(tmp_path / "out"), x, tmp_path)
    assert metadata["class"] == ("AutoEncoder" if nonlinearity == "relu" else "JumpReluAutoEncoder")
    assert metadata["layer"] == 5 and metadata["lm_name"] == "gpt2" and metadata["ctx_len"] == 64
    assert_same(acts, recon, tmp_path / "sae", x)


def test_dictionary_learning_on_tokens_that_were_rescaled_computes_the_same(tmp_path):
    save_sample(tmp_path / "sae", "prolu_ste")
    export_folder(tmp_path / "sae", tmp_path / "out", format_name="dictionary_learning", normalized_inputs=True)
    x = tokens()
    x = (x / np.linalg.norm(x, axis=1, keepdims=True) * np.sqrt(D_IN)).astype(np.float32)
    _, acts, recon = read_by_peer("dictionary_learning", str(tmp_path / "out"), x, tmp_path)
    assert_same(acts, recon, tmp_path / "sae", x, normalized_inputs=True)


def test_saelens_loads_from_the_hub(tmp_path):
    from stand_in_hub import Hub, HubServer

    hub = Hub(token="unused")
    save_sample(tmp_path / "sae", "prolu_ste")
    export_folder(tmp_path / "sae", tmp_path / "ste", format_name="saelens")
    hub.files["me/saes"] = {f"ste/{file.name}": file.read_bytes() for file in (tmp_path / "ste").iterdir()}
    server = HubServer(hub)
    x = tokens()
    try:
        environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        _, acts, recon = read_by_peer("hub", "me/saes#ste", x, tmp_path, **environment)
    finally:
        server.shutdown()
    assert_same(acts, recon, tmp_path / "sae", x)
