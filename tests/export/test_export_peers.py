"""Round trips through the real SAELens and dictionary_learning, in an environment of their own (`make test-exports`)."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from export_samples import ARCHITECTURES, D_IN, save_sample, tokens
from stand_in_hub import Hub, HubServer
from test_export_formats import assert_same

from prolu_tune.export import export_folder

PEERS = Path(os.environ.get("PROLU_PEERS_PYTHON") or Path(__file__).parents[2] / ".venv-peers" / "bin" / "python")
READER = Path(__file__).with_name("peers_reader.py")

pytestmark = pytest.mark.skipif(not PEERS.exists(), reason=f"no {PEERS}; make it with `make test-exports`")


@dataclass
class Read:
    """One folder as another tool has it, beside the one it was exported from."""

    metadata: dict
    acts: np.ndarray
    recon: np.ndarray
    source: Path
    x: np.ndarray


def read_by_peer(jobs: list[dict[str, str]], root: Path, **environment: str) -> list[dict]:
    """Returns the metadata of each job; importing a peer takes many seconds, so one process does them all."""
    (root / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [str(PEERS), str(READER), str(root / "jobs.json")],
        capture_output=True,
        text=True,
        env={**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", **environment},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def round_trip(root: Path, kind: str, *, normalization: str, normalized_inputs: bool = False) -> dict[tuple[str, str], Read]:
    """Returns what the tool reads, by architecture."""
    x = tokens()
    if normalized_inputs:
        x = (x / np.linalg.norm(x, axis=1, keepdims=True) * np.sqrt(D_IN)).astype(np.float32)
    np.save(root / "x.npy", x)
    jobs, files = [], {}
    for nonlinearity, penalty in ARCHITECTURES:
        source, out = root / f"{nonlinearity}-{penalty}", root / f"{nonlinearity}-{penalty}-out"
        save_sample(source, nonlinearity, penalty, normalization=normalization)
        export_folder(source, out, format_name=kind, normalized_inputs=normalized_inputs)
        jobs.append({"kind": kind, "place": str(out), "x": str(root / "x.npy"), "out": f"{out}.npz"})
        files[nonlinearity, penalty] = (source, Path(f"{out}.npz"))
    metadata = read_by_peer(jobs, root)
    return {
        name: Read(found, np.load(arrays)["acts"], np.load(arrays)["recon"], source, x)
        for found, (name, (source, arrays)) in zip(metadata, files.items(), strict=True)
    }


@pytest.fixture(scope="module")
def by_saelens(tmp_path_factory) -> dict[tuple[str, str], Read]:
    return round_trip(tmp_path_factory.mktemp("saelens"), "saelens", normalization="per_token")


@pytest.fixture(scope="module")
def by_dictionary_learning(tmp_path_factory) -> dict[tuple[str, str], Read]:
    return round_trip(tmp_path_factory.mktemp("dictionary_learning"), "dictionary_learning", normalization="none")


@pytest.mark.xdist_group("saelens")
@pytest.mark.parametrize(("nonlinearity", "penalty"), ARCHITECTURES)
def test_saelens_loads_and_computes_the_same(by_saelens, nonlinearity, penalty):
    read = by_saelens[nonlinearity, penalty]
    assert read.metadata["class"] == ("StandardSAE" if nonlinearity == "relu" else "JumpReLUSAE")
    assert read.metadata["normalize"] == "constant_norm_rescale"
    assert read.metadata["model_name"] == "gpt2" and read.metadata["hook_name"] == "blocks.6.hook_resid_pre"
    assert read.metadata["prolu_tune"]["architecture"] == f"{nonlinearity}+{penalty}"
    assert_same(read.acts, read.recon, read.source, read.x)


@pytest.mark.xdist_group("dictionary_learning")
@pytest.mark.parametrize(("nonlinearity", "penalty"), ARCHITECTURES)
def test_dictionary_learning_loads_and_computes_the_same(by_dictionary_learning, nonlinearity, penalty):
    read = by_dictionary_learning[nonlinearity, penalty]
    assert read.metadata["class"] == ("AutoEncoder" if nonlinearity == "relu" else "JumpReluAutoEncoder")
    assert read.metadata["layer"] == 5 and read.metadata["lm_name"] == "gpt2" and read.metadata["ctx_len"] == 64
    assert_same(read.acts, read.recon, read.source, read.x)


@pytest.mark.xdist_group("dictionary_learning")
def test_dictionary_learning_on_tokens_that_were_rescaled_computes_the_same(tmp_path):
    reads = round_trip(tmp_path, "dictionary_learning", normalization="per_token", normalized_inputs=True)
    for read in reads.values():
        assert_same(read.acts, read.recon, read.source, read.x, normalized_inputs=True)


@pytest.mark.xdist_group("saelens")
def test_saelens_loads_from_the_hub(tmp_path):
    hub, x = Hub(token="unused"), tokens()
    save_sample(tmp_path / "sae", "prolu_ste")
    export_folder(tmp_path / "sae", tmp_path / "ste", format_name="saelens")
    hub.files["me/saes"] = {f"ste/{file.name}": file.read_bytes() for file in (tmp_path / "ste").iterdir()}
    np.save(tmp_path / "x.npy", x)
    server = HubServer(hub)
    job = {"kind": "hub", "place": "me/saes#ste", "x": str(tmp_path / "x.npy"), "out": str(tmp_path / "out.npz")}
    try:
        read_by_peer([job], tmp_path, HF_ENDPOINT=server.url, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="0")
    finally:
        server.shutdown()
    arrays = np.load(tmp_path / "out.npz")
    assert_same(arrays["acts"], arrays["recon"], tmp_path / "sae", x)
