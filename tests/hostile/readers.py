"""The readers of everything a person can share, each with whole samples and what may come of a mutated one."""

import contextlib
import json
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import yaml
from events import operations as op

from hostile.mutate import as_json, mutated_bytes, mutated_tree
from prolu_tune.activations.arrow_files import DamagedFileError, file_checksum, fixed_rows
from prolu_tune.activations.cache import chunk_name, open_chunk
from prolu_tune.activations.digests import read_json
from prolu_tune.activations.packing import TokenFile
from prolu_tune.config.shape import model_shape
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.durable import sealed, unsealed
from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.export.source import read_trained
from prolu_tune.results.filters import StoredTrial
from prolu_tune.results.query import Sweep, SweepFacts, load_sae
from prolu_tune.results.records import record_from_run, to_json
from prolu_tune.results.status import read_space
from prolu_tune.sae.folder import _config_digest
from prolu_tune.sae.tensor_file import content_digest, read_tensors, write_tensors
from prolu_tune.search.space import load_space
from prolu_tune.sweep.files import SweepFolder, read_stored
from prolu_tune.sweep.study import SweepStudy
from prolu_tune.sweep.trial import MetricsFile
from prolu_tune.training.checkpoint import FORMAT, load_newest

SPACES = Path(__file__).parents[2] / "search_spaces"
SETTINGS = (
    "training.lr=1e-3",
    "seeds=[0, 1]",
    "grid.training.batch_size=[64, 128]",
    "name=a",
    "search={kind: coverage, l0: [5, 50]}",
)


class Reader(NamedTuple):
    """A reader and its inputs."""

    share: int
    """Of a hundred inputs, how many are for it."""
    allowed: tuple[type[Exception], ...]
    prepare: Callable[[Path, random.Random], tuple[int, Callable[[], str]]]
    """(scratch folder, generator) -> (bytes of the mutated input, the reading of it, which says what came of it)."""


def _forged(rng: random.Random) -> bool:
    """Whether the checksum is made to fit, so that what lies behind it is reached."""
    return rng.random() < 0.6


# -- YAML


def _yaml(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    text = rng.choice(sorted(SPACES.glob("*.yaml"))).read_bytes()
    if rng.random() < 0.5:
        tree = mutated_tree(yaml.safe_load(text), rng)
        try:
            text = yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
        except (yaml.YAMLError, RecursionError):
            text = as_json(tree)
    else:
        text = mutated_bytes(text, rng)
    path = folder / "space.yaml"
    path.write_bytes(text)
    settings = []
    for setting in rng.sample(SETTINGS, rng.choice((0, 0, 1, 2))):
        settings.append(mutated_bytes(setting.encode(), rng).decode("utf-8", "replace"))

    def read() -> str:
        space = load_space(path, overrides=settings)
        assert not {"/", "..", "\0"} & {space.name, *space.name}
        space.identity()
        return "taken"

    return len(text) + sum(map(len, settings)), read


def _model(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    tree = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "vocab_size": 9,
        "text_config": {"n_embd": 4, "n_layer": 1},
        "model_type": "gpt2",
    }
    text = as_json(mutated_tree(tree, rng)) if rng.random() < 0.6 else mutated_bytes(as_json(tree), rng)
    (folder / "config.json").write_bytes(text)

    def read() -> str:
        shape = model_shape(ActivationConfig(model=str(folder)))
        assert shape is not None and shape.num_parameters > 0
        return "taken"

    return len(text), read


# -- the folder of an autoencoder


def _sae(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    op.save(folder, 0)
    target, forged = folder / "sae", _mutated_sae(folder / "sae", rng)

    def read() -> str:
        loaded = load_sae(target)
        if not forged:
            assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in op.sae(0).state_dict().items())
        return "taken"

    return _size(target), read


def _export(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    op.save(folder, 0)
    target = folder / "sae"
    _mutated_sae(target, rng)

    def read() -> str:
        trained = read_trained(target)
        assert trained.label and trained.model_name and "/" not in trained.dataset_name.partition("/")[2]
        json.dumps(trained.provenance())
        return "taken"

    return _size(target), read


def _mutated_sae(target: Path, rng: random.Random) -> bool:
    """Mutates the folder; returns whether its checksums were made to fit."""
    config, tensors = target / "config.json", target / "sae.safetensors"
    if rng.random() < 0.4:
        tensors.write_bytes(_mutated_tensors(tensors.read_bytes(), rng))
        return False
    if not _forged(rng):
        config.write_bytes(mutated_bytes(config.read_bytes(), rng))
        return False
    document = mutated_tree(json.loads(config.read_bytes()), rng)
    if isinstance(document, dict):
        document["config_sha256"] = _config_digest(document)
    config.write_bytes(as_json(document))
    return True


def _mutated_tensors(data: bytes, rng: random.Random) -> bytes:
    """Mutates a safetensors file, its header as a tree where chance wants it."""
    if rng.random() < 0.5:
        return mutated_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = as_json(mutated_tree(json.loads(data[8 : 8 + length]), rng), separators=(",", ":"))
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


# -- a checkpoint


def _checkpoint(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    op.save_checkpoint(folder, op.checkpoint(7))
    path = folder / "checkpoint-0000000007.safetensors"
    forged = _forged(rng)
    if forged:
        tensors, metadata = read_tensors(path, op.specs())
        tree = mutated_tree({"format": FORMAT, "state": json.loads(metadata["state"])}, rng)
        state = tree.get("state", "") if isinstance(tree, dict) else ""
        state = mutated_bytes(as_json(state), rng).decode("utf-8", "replace") if rng.random() < 0.3 else as_json(state).decode()
        name = str(tree.get("format", "")) if isinstance(tree, dict) else FORMAT
        name = name.encode("utf-8", "replace").decode()
        state = state[:100_000]  # our own writer refuses a header that it could not read back
        digest = content_digest(tensors, name + state)
        write_tensors(path, tensors, {"format": name, "state": state, "sha256": digest})
    else:
        path.write_bytes(_mutated_tensors(path.read_bytes(), rng))
    size = path.stat().st_size

    def read() -> str:
        found, notes = load_newest(folder, op.specs())
        assert (found is None) == bool(notes), "nothing was said"
        assert forged or found is None or op.same_checkpoint(found, op.checkpoint(7))
        return "taken" if found else "refused"

    return size, read


# -- chunks and rows of tokens


def _arrow(folder: Path, rng: random.Random, array: np.ndarray) -> tuple[Path, bool]:
    """Returns a mutated Arrow file, and whether its name is that of its bytes."""
    path = folder / "file"
    kind = rng.randrange(8)
    batch = fixed_rows(array, name="activation")
    if kind == 0:
        batch = pa.record_batch({"a": rng.choice(_COLUMNS)})
    elif kind == 1:
        batch = pa.record_batch({"a": batch.column(0), "b": batch.column(0)})
    options = pa.ipc.IpcWriteOptions(compression="zstd" if kind == 2 else None)
    if kind == 2:
        batch = fixed_rows(np.zeros((200_000, array.shape[1]), array.dtype), name="activation")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    data = path.read_bytes()
    if kind > 2 or rng.random() < 0.3:
        data = mutated_bytes(data, rng)
        path.write_bytes(data)
    forged = _forged(rng)
    checksum = file_checksum(path) if forged else file_checksum(path)[::-1]
    return path.rename(folder / f"{chunk_name(0)}-{checksum}.arrow"), forged


_COLUMNS = (
    pa.array(["a", "b"]),
    pa.array([[1], None]),
    pa.array([None, None]),
    pa.array([{"a": 1}]),
    pa.array([1, 2]).dictionary_encode(),
    pa.array([[1, 2], None], pa.list_(pa.int32(), 2)),
    pa.array([["x", "y"]], pa.list_(pa.string(), 2)),
    pa.array([[1, None]], pa.list_(pa.int16(), 2)),
    pa.array([[]], pa.list_(pa.float16(), 0)),
    pa.array([[True, False]], pa.list_(pa.bool_(), 2)),
)


def _chunk(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    path, forged = _arrow(folder, rng, op.activations(0))

    def read() -> str:
        array = open_chunk(path, tokens=op.TOKENS, d_in=op.D_IN)
        assert forged and array.shape == (op.TOKENS, op.D_IN)
        array.sum(dtype=np.float64)
        return "taken"

    return path.stat().st_size, read


def _tokens(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    path, forged = _arrow(folder, rng, np.arange(96, dtype=np.uint16).reshape(12, 8))

    def read() -> str:
        file = TokenFile(path, context_length=8)
        assert forged
        file.rows(np.arange(file.num_rows))
        return "taken"

    return path.stat().st_size, read


# -- the study's journal, rows, small files


def _journal(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    sweep = SweepFolder(folder)
    (folder / "study.journal").write_bytes(_journal_sample())
    lines = _journal_sample().splitlines(keepends=True)
    if _forged(rng):
        at = rng.randrange(len(lines))
        record = mutated_tree(unsealed(lines[at]), rng)
        lines[at : at + 1] = [_sealed(record)] * rng.choice((1, 1, 2)) if rng.random() < 0.8 else []
        data = b"".join(lines)
    else:
        data = mutated_bytes(b"".join(lines), rng)
    (folder / "study.journal").write_bytes(data)

    def read() -> str:
        study = SweepStudy(sweep, "s")
        results, configs = study.results(), study.configs()
        assert results.keys() <= configs.keys()
        return "taken"

    return len(data), read


_JOURNAL: list[bytes] = []


def _journal_sample() -> bytes:
    if not _JOURNAL:
        with tempfile.TemporaryDirectory() as folder:
            op.JOURNAL.prepare(Path(folder))
            _JOURNAL.append((Path(folder) / "sweep" / "study.journal").read_bytes())
    return _JOURNAL[0]


def _rows(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    lines = [sealed(op.row(step)) for step in (10, 20, 30, 40)]
    if _forged(rng):
        at = rng.randrange(4)
        lines[at] = _sealed(mutated_tree(op.row(10 * at + 10), rng))
        data = b"".join(lines)
    else:
        data = mutated_bytes(b"".join(lines), rng)
    (folder / "metrics.jsonl").write_bytes(data)

    def read() -> str:
        rows = MetricsFile(folder / "metrics.jsonl")
        rows.append(op.row(50))
        return "taken"

    return len(data), read


def _small(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    data = mutated_bytes(sealed({"steps": 3, "message": "x", "outcome": "finished"}), rng)
    (folder / "trained.json").write_bytes(data)

    def read() -> str:
        assert read_json(folder / "trained.json") is None or unsealed(data)
        assert read_stored(folder / "trained.json") == {"steps": 3, "message": "x", "outcome": "finished"}
        return "taken"

    return len(data), read


def _sealed(record: Any) -> bytes:
    return sealed(record) if isinstance(record, dict) and record else as_json(record) + b"\n"


# -- what a tracking server says


def _records(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    space = {
        "architectures": {"relu+l1": {"l1_coefficient": {"values": [1]}}},
        "search": {"kind": "coverage", "l0": [5, 50], "bins": 4},
    }
    tags = {
        "prolu.kind": "trial",
        "prolu.trial": "3",
        "prolu.state": "finished",
        "prolu.architecture": "relu+l1",
        "prolu.checkpoint": "/x",
    }
    params = {
        "sae.nonlinearity": "relu",
        "sae.penalty": "l1",
        "training.l1_coefficient": "0.5",
        "training.lr": "1e-3",
        "seed": "0",
    }
    metrics = {"l0": 12.0, "ce_degradation": 0.5, "steps": 10.0, "tokens": 100.0, "wall_s": 2.0, "train/tokens": 50.0}
    answer = mutated_tree({"space": space, "tags": tags, "params": params, "metrics": metrics}, rng)
    text = as_json(answer.get("space")) if isinstance(answer, dict) else b""
    text = mutated_bytes(text, rng) if rng.random() < 0.5 else text
    as_tag = rng.random() < 0.5

    def table(name: str, kind: type) -> dict[str, Any]:
        # MLflow's own client makes texts of tags and parameters and numbers of metrics before anyone sees them.
        found = answer.get(name) if isinstance(answer, dict) else None
        pairs = found.items() if isinstance(found, dict) else ()
        if kind is str:
            return {str(key): str(value) for key, value in pairs}
        return {str(key): _number(value) for key, value in pairs}

    def read() -> str:
        run = SimpleNamespace(
            info=SimpleNamespace(run_id="0" * 32, run_name="r", experiment_id="1", status="RUNNING"),
            data=SimpleNamespace(tags=table("tags", str), params=table("params", str), metrics=table("metrics", float)),
        )
        trial = StoredTrial(record_from_run(run), run.data.metrics, run.data.params, run.data.tags, "r")  # type: ignore[arg-type] - stands in for MLflow's Run
        parent = SimpleNamespace(
            info=run.info, data=SimpleNamespace(tags={"prolu.space": text.decode("utf-8", "replace")} if as_tag else {})
        )
        found = read_space(_Server(text), parent)  # type: ignore[arg-type] - stands in for MLflow's client
        facts = SweepFacts(name="n", run_id="0" * 32, tracking_uri="sqlite://", run_status="RUNNING", space=found, num_trials=3)
        sweep = Sweep((facts,), (trial, trial))
        to_json({"status": sweep.status(), "frontier": sweep.frontier(), "best": sweep.best(60)})
        return "taken"

    return len(text) + 1000, read


class _Server:
    """A tracking server that hands out one artifact."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def download_artifacts(self, run_id: str, path: str, folder: str) -> str:
        """Puts the artifact into the folder, as MLflow's client does."""
        target = Path(folder) / path
        target.write_bytes(self._content)
        return str(target)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


OURS = (InputError, SurroundingsError)
READERS: dict[str, Reader] = {
    "search space": Reader(28, (InputError,), _yaml),
    "SAE folder": Reader(14, (InputError,), _sae),
    "checkpoint": Reader(14, (SurroundingsError,), _checkpoint),
    "chunk": Reader(12, (DamagedFileError,), _chunk),
    "token rows": Reader(6, (DamagedFileError,), _tokens),
    "journal": Reader(8, OURS, _journal),
    "metrics rows": Reader(4, (SurroundingsError,), _rows),
    "small files": Reader(2, (SurroundingsError,), _small),
    "server's records": Reader(6, OURS, _records),
    "export source": Reader(4, (InputError,), _export),
    "model config": Reader(2, (InputError,), _model),
}


def one(name: str, seed: int, number: int, guard: Any, scratch: Path) -> str:
    """Reads input `number` of a reader; returns `taken` or `refused`.

    Raises:
        AssertionError: if the reader did anything else.
    """
    from hostile.guard import refused_cleanly

    reader = READERS[name]
    folder = scratch / "input"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tempfile.tempdir = str(folder)  # what a reader puts aside for a moment is inside as well
    try:
        size, read = reader.prepare(folder, random.Random(f"{seed}/{name}/{number}"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return refused_cleanly(guard, size, read, reader.allowed)
    finally:
        tempfile.tempdir = None


def warm_up(name: str, guard: Any, scratch: Path, *, inputs: int) -> None:
    """Reads inputs whose outcome does not count, so that what is imported late is there before anyone looks."""
    for number in range(inputs):
        with contextlib.suppress(AssertionError):
            one(name, -1, number, guard, scratch)
