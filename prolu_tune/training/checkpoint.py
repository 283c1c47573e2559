"""Checkpoints of a training: one safetensors file each, checked by SHA-256, the last two kept.

A file is published by rename after fsync, so that a kill or a power cut leaves the earlier ones whole. One that is
damaged all the same is set aside, and the one before is used.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from prolu_tune.durable import make_folder
from prolu_tune.errors import SurroundingsError
from prolu_tune.sae.tensor_file import (
    DamagedFileError,
    TensorSpec,
    content_digest,
    read_json_object,
    read_tensors,
    write_tensors,
)

FORMAT = "prolu-tune checkpoint 1"
NUM_KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{10})\.safetensors")


class Checkpoint(NamedTuple):
    """All that a training needs to go on as if nothing had happened."""

    step: int
    tensors: dict[str, Tensor]
    state: dict
    """JSON values."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint, removes all but the newest two, and returns its path.

    Raises:
        SurroundingsError: if it cannot be written; earlier checkpoints are untouched.
    """
    path = folder / f"checkpoint-{checkpoint.step:010d}.safetensors"
    state = json.dumps(checkpoint.state)
    metadata = {"format": FORMAT, "state": state, "sha256": content_digest(checkpoint.tensors, FORMAT + state)}
    try:
        make_folder(folder)
        write_tensors(path, checkpoint.tensors, metadata)
        for old in _by_age(folder)[NUM_KEPT:]:
            old.unlink()
    except OSError as error:
        raise SurroundingsError(
            f"cannot write the checkpoint {path}: {error.strerror}; earlier checkpoints are intact: "
            "make room or give access, then run the same command again"
        ) from error
    return path


def load_newest(folder: Path, expected: dict[str, TensorSpec]) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """Returns the newest checkpoint that is whole (None if there is none), and a warning for each that is not.

    A damaged file is renamed to `NAME.damaged`, so that it is neither read again nor counted among the last two. What
    a kill left half written is removed: this is called by the one training of the folder, before it writes.

    Raises:
        SurroundingsError: if a checkpoint was written in another format, or cannot be read or set aside.
    """
    warnings = []
    path = folder
    try:
        for leftover in folder.glob("checkpoint-*.tmp"):
            leftover.unlink()
        for path in _by_age(folder):
            try:
                return _read(path, expected), tuple(warnings)
            except DamagedFileError as error:
                warnings.append(f"a damaged checkpoint was set aside, going on from the one before: {error}")
                path.replace(path.with_name(path.name + ".damaged"))
    except OSError as error:
        raise SurroundingsError(f"cannot read the checkpoint {path}: {error.strerror}; give access, then run again") from error
    return None, tuple(warnings)


def _read(path: Path, expected: dict[str, TensorSpec]) -> Checkpoint:
    tensors, metadata = read_tensors(path, expected)
    found, state = metadata.get("format", ""), metadata.get("state", "")
    if content_digest(tensors, found + state) != metadata.get("sha256"):
        raise DamagedFileError(f"{path} does not have the SHA-256 it names")
    if found != FORMAT:
        raise SurroundingsError(
            f"{path} has format {found!r}, this version reads {FORMAT!r}; go on with the version that wrote it, or start afresh"
        )
    step = int(path.name[len("checkpoint-") :].split(".")[0])
    return Checkpoint(step, tensors, read_json_object(state, what=f"the state in {path}"))


def _by_age(folder: Path) -> list[Path]:
    """Returns the folder's checkpoints, newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)
