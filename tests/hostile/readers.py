"""The readers of everything a person can share, each with whole samples and what may come of a mutated one."""

import contextlib
import json
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
import yaml
from events import operations as op

from hostile import record_readers
from hostile.mutate import as_json, forged, mutated_bytes, mutated_tree
from prolu_tune.activations.arrow_files import DamagedFileError, file_checksum, fixed_rows
from prolu_tune.activations.cache import chunk_name, open_chunk
from prolu_tune.activations.packing import TokenFile
from prolu_tune.config.shape import model_shape
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.export.source import read_trained
from prolu_tune.results.query import load_sae
from prolu_tune.sae.folder import _config_digest
from prolu_tune.sae.tensor_file import content_digest, read_tensors, write_tensors
from prolu_tune.search.space import load_space
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
    target, fits = folder / "sae", _mutated_sae(folder / "sae", rng)

    def read() -> str:
        loaded = load_sae(target)
        if not fits:
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
    if not forged(rng):
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
    fits = forged(rng)
    if fits:
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
        assert fits or found is None or op.same_checkpoint(found, op.checkpoint(7))
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
    fits = forged(rng)
    checksum = file_checksum(path) if fits else file_checksum(path)[::-1]
    return path.rename(folder / f"{chunk_name(0)}-{checksum}.arrow"), fits


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
    path, fits = _arrow(folder, rng, op.activations(0))

    def read() -> str:
        array = open_chunk(path, tokens=op.TOKENS, d_in=op.D_IN)
        assert fits and array.shape == (op.TOKENS, op.D_IN)
        array.sum(dtype=np.float64)
        return "taken"

    return path.stat().st_size, read


def _tokens(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    path, fits = _arrow(folder, rng, np.arange(96, dtype=np.uint16).reshape(12, 8))

    def read() -> str:
        file = TokenFile(path, context_length=8)
        assert fits
        file.rows(np.arange(file.num_rows))
        return "taken"

    return path.stat().st_size, read


OURS = (InputError, SurroundingsError)
READERS: dict[str, Reader] = {
    "search space": Reader(28, (InputError,), _yaml),
    "SAE folder": Reader(14, (InputError,), _sae),
    "checkpoint": Reader(14, (SurroundingsError,), _checkpoint),
    "chunk": Reader(12, (DamagedFileError,), _chunk),
    "token rows": Reader(6, (DamagedFileError,), _tokens),
    "journal": Reader(8, OURS, record_readers.journal),
    "metrics rows": Reader(4, (SurroundingsError,), record_readers.rows),
    "small files": Reader(2, (SurroundingsError,), record_readers.small),
    "server's records": Reader(6, OURS, record_readers.records),
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
