"""Digests of input files, remembered by path, size and time so that a large file is read once per node."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prolu_tune.activations.arrow_files import cache_error, exclusive
from prolu_tune.durable import DamagedLineError, replace_file, sealed, unsealed


def digest_of(document: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a JSON document in canonical form, hex."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def files_digest(files: list[Path], *, memo: Path | None) -> str:
    """Returns the SHA-256 over names and contents of files in the given order, hex.

    Args:
        files: existing files; only their last names count, so that a folder may move.
        memo: folder that remembers digests by (path, size, modification time); None reads every file.
    """
    return digest_of({"files": [[path.name, _file_digest(path, memo)] for path in files]})


def store_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a small file of ours, for `read_json`; several processes may do so at once.

    Raises:
        SurroundingsError: if the disk is full or fails.
        InputError: if the folder cannot be written.
    """
    with exclusive(path.parent):
        try:
            replace_file(path, [sealed(dict(document))])
        except OSError as error:
            raise cache_error(error, path.parent) from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the JSON object in a file of ours, or None if the file is missing or damaged."""
    try:
        return unsealed(path.read_bytes())
    except (OSError, DamagedLineError):
        return None


def _file_digest(path: Path, memo: Path | None) -> str:
    status = path.stat()
    identity = {"path": str(path.resolve()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    remembered = None if memo is None else memo / f"{digest_of(identity)[:32]}.json"
    if remembered is not None and (known := read_json(remembered)) is not None and known.get("identity") == identity:
        return str(known["sha256"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if remembered is not None:
        store_json(remembered, {"identity": identity, "sha256": digest})
    return digest
