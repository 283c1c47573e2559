"""A trained autoencoder on disk: a folder with `sae.safetensors` (four tensors) and `config.json`.

`config.json` holds the complete trial configuration, versions, metrics, the SHA-256 of the tensors and its own. Nothing
in the folder is run, and nothing is allocated before names, dtypes, shapes and sizes agree.
"""

import contextlib
import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from prolu_tune.config.trial import SaeConfig
from prolu_tune.durable import make_folder, replace_file, sync_folder
from prolu_tune.errors import InputError
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.sae.tensor_file import (
    DamagedFileError,
    TensorSpec,
    content_digest,
    read_json_object,
    read_small_file,
    read_tensors,
    write_tensors,
)

TENSORS_NAME = "sae.safetensors"
CONFIG_NAME = "config.json"
FORMAT = 2
MAX_CONFIG_BYTES = 1_000_000


def save_sae(
    sae: SparseAutoencoder, folder: Path, *, config: dict, versions: dict[str, str], metrics: dict[str, int | float | None]
) -> Path:
    """Writes the folder as a whole, replacing one that is there, and returns it.

    Args:
        sae: what to save.
        folder: its parent is made if need be.
        config: the complete trial configuration, as JSON values; its section `sae` is what loading reads.
        versions: version by package.
        metrics: final metrics; NaN and infinity become null.

    Raises:
        OSError: if it cannot be written; a folder that was there is untouched.
    """
    tensors = {name: tensor.detach() for name, tensor in sae.named_parameters()}
    document = {
        "format": FORMAT,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "config": config,
        "versions": versions,
        "metrics": _finite(metrics),
        "sha256": content_digest(tensors),
    }
    make_folder(folder.parent)
    new, old = folder.with_name(folder.name + ".tmp"), _before(folder)
    if old.exists() and not folder.exists():
        old.replace(folder)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    new.mkdir()
    try:
        write_tensors(new / TENSORS_NAME, tensors, {"format": "pt"})
        replace_file(new / CONFIG_NAME, [_config_text(document)])
        _swap(new, folder, old)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _swap(new: Path, folder: Path, old: Path) -> None:
    """Puts a whole folder in another's place; between the two renames readers find the one before under its other name."""
    if folder.exists():
        folder.replace(old)
    try:
        new.replace(folder)
    except OSError:
        with contextlib.suppress(OSError):
            old.replace(folder)
        raise
    sync_folder(folder.parent)


def save_metrics(folder: Path, metrics: Mapping[str, int | float | None]) -> None:
    """Puts other final metrics into the `config.json` of a folder.

    Raises:
        InputError: if the folder's `config.json` is damaged.
        OSError: if it cannot be written; it is untouched then.
    """
    document = read_sae_config(folder) | {"metrics": _finite(metrics)}
    replace_file(folder / CONFIG_NAME, [_config_text(document)])


def _finite(metrics: Mapping[str, int | float | None]) -> dict[str, int | float | None]:
    return {name: None if value is None or not math.isfinite(value) else value for name, value in metrics.items()}


def _config_text(document: dict[str, Any]) -> bytes:
    """Returns the document as the bytes of a `config.json`, with its own checksum in it."""
    return json.dumps(document | {"config_sha256": _config_digest(document)}, indent=2, allow_nan=False).encode() + b"\n"


def _config_digest(document: dict[str, Any]) -> str:
    rest = {name: value for name, value in document.items() if name != "config_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _before(folder: Path) -> Path:
    """Returns where the folder before lies while a new one takes its place."""
    return folder.with_name(folder.name + ".old")


def load_sae_folder(path: Path) -> SparseAutoencoder:
    """Returns the autoencoder of a folder, or of the folder that a given `sae.safetensors` lies in, on the CPU.

    Raises:
        InputError: if there is none, or its files are incomplete, altered or of another kind.
    """
    folder = path.parent if path.name == TENSORS_NAME else path
    if not folder.is_dir() and _before(folder).is_dir():
        warnings.warn(f"{folder} was about to be replaced when its writer died; the one before is read", stacklevel=2)
        folder = _before(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one that holds {TENSORS_NAME} and {CONFIG_NAME}")
    document = read_sae_config(folder)
    d_in, d_sae = document["d_in"], document["d_sae"]
    expected = {
        "W_enc": TensorSpec(torch.float32, (d_in, d_sae)),
        "W_dec": TensorSpec(torch.float32, (d_sae, d_in)),
        "b_enc": TensorSpec(torch.float32, (d_sae,)),
        "b_dec": TensorSpec(torch.float32, (d_in,)),
    }
    try:
        config = SaeConfig.model_validate(document["config"]["sae"])
        tensors, _ = read_tensors(folder / TENSORS_NAME, expected)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _refused(folder, f"config.sae.{where} in {CONFIG_NAME}: {first['msg']}") from error
    except (DamagedFileError, OSError) as error:
        raise _refused(folder, str(error)) from error
    if content_digest(tensors) != document.get("sha256"):
        raise _refused(folder, f"{TENSORS_NAME} does not have the SHA-256 that {CONFIG_NAME} names")
    sae = SparseAutoencoder(config, d_in, d_sae, generator=torch.Generator())
    sae.load_state_dict(tensors)
    return sae


def read_sae_config(folder: Path) -> dict:
    """Returns `config.json` of an autoencoder's folder: format, d_in, d_sae, config, versions, metrics, sha256.

    Raises:
        InputError: if it is missing, too large, not JSON, of another format, or lacks what loading needs.
    """
    try:
        text = read_small_file(folder / CONFIG_NAME, max_bytes=MAX_CONFIG_BYTES)
        document = read_json_object(text, what=CONFIG_NAME)
    except (DamagedFileError, OSError) as error:
        raise _refused(folder, str(error)) from error
    if document.get("format") not in (1, FORMAT):
        raise _refused(
            folder, f"{CONFIG_NAME} names format {str(document.get('format'))[:20]}, this version reads 1 and {FORMAT}"
        )
    # Format 1 had no checksum of its own; a checksum that is there has to fit, whatever the format says.
    checked = document["format"] == FORMAT or "config_sha256" in document
    if checked and document.get("config_sha256") != _config_digest(document):
        raise _refused(folder, f"{CONFIG_NAME} does not have the SHA-256 it names")
    for name in ("d_in", "d_sae"):
        # type() and not isinstance: JSON's true is an int to Python. The limit keeps sizes printable, whoever wrote them.
        if type(document.get(name)) is not int or not 0 < document[name] < 2**31:
            raise _refused(folder, f"{name} in {CONFIG_NAME} must be a positive whole number below 2^31")
    if not isinstance(document.get("config"), dict) or not isinstance(document["config"].get("sae"), dict):
        raise _refused(folder, f"{CONFIG_NAME} lacks the section config.sae")
    return document


def _refused(folder: Path, reason: str) -> InputError:
    return InputError(f"{folder} is not a usable autoencoder: {reason}; copy or train it again")
