"""Reads and writes safetensors files: without a second copy in memory, synced, and refused before anything is allocated.

The safetensors package reads what is written here. It is not used itself because its writer neither syncs nor lets the
operating system's own error (such as a full disk) through, and its reader allocates before names and shapes are checked.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prolu_tune.durable import replace_file

MAX_HEADER_BYTES = 1_000_000
MAX_JSON_PARTS = 20_000
"""Values in a header or a `config.json`; a megabyte of `[],[],...` would take thirty megabytes of objects."""
_CODES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


class DamagedFileError(ValueError):
    """The file is not what it should be: torn, altered, or of another kind."""


class TensorSpec(NamedTuple):
    """What a tensor in a file must be."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of its data."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def spec_of(tensor: Tensor) -> TensorSpec:
    """Returns the dtype and shape of a tensor."""
    return TensorSpec(tensor.dtype, tuple(tensor.shape))


def content_digest(tensors: dict[str, Tensor], text: str = "") -> str:
    """Returns the SHA-256 over names, dtypes, shapes and bytes of the tensors, in order of name, and a text."""
    digest = hashlib.sha256(text.encode(errors="surrogatepass"))
    for name in sorted(tensors):
        digest.update(f"\0{name}\0{_CODES[tensors[name].dtype]}\0{tuple(tensors[name].shape)}\0".encode())
        digest.update(_bytes_of(tensors[name]))
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file in place of `path`, as a whole or not at all: temporary name, fsync, rename.

    Raises:
        OSError: if it cannot be written; what stood at `path` is untouched and the temporary file is gone.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in tensors.items():
        size = spec_of(tensor).num_bytes
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    assert len(text) <= MAX_HEADER_BYTES, "the header must stay small enough to be read back"
    replace_file(path, [len(text).to_bytes(8, "little"), text, *(_bytes_of(tensor) for tensor in tensors.values())])


def read_small_file(path: Path, *, max_bytes: int) -> bytes:
    """Returns the content of a regular file of limited size.

    Raises:
        DamagedFileError: if it is larger, or no regular file.
        OSError: if it cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DamagedFileError(f"{path} is not a regular file")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise DamagedFileError(f"{path} is larger than {max_bytes} bytes")
    return content


def read_json_object(text: bytes | str, *, what: str) -> dict[str, Any]:
    """Returns the JSON object in a text of limited size.

    Raises:
        DamagedFileError: if it is none, or holds more values than any of ours.
    """
    marks: tuple[Any, ...] = (b",", b"[", b"{") if isinstance(text, bytes) else (",", "[", "{")
    if sum(text.count(mark) for mark in marks) > MAX_JSON_PARTS:
        raise DamagedFileError(f"{what} holds more than {MAX_JSON_PARTS} values")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{what} is not JSON ({type(error).__name__})") from error
    if not isinstance(document, dict):
        raise DamagedFileError(f"{what} is not a JSON object")
    return document


def read_tensors(path: Path, expected: dict[str, TensorSpec]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a safetensors file, exactly those expected, and its metadata.

    Raises:
        DamagedFileError: if names, dtypes, shapes or sizes differ from what is expected; nothing was allocated then.
        OSError: if it cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise DamagedFileError(f"{path} is not a regular file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or header_bytes > min(MAX_HEADER_BYTES, size - 8):
            raise DamagedFileError(f"{path}: header of {header_bytes} bytes in a file of {size}; at most {MAX_HEADER_BYTES}")
        offsets, metadata = _checked_header(path, file.read(header_bytes), expected, data_bytes=size - 8 - header_bytes)
        tensors = {}
        for name, offset in offsets.items():
            tensors[name] = torch.empty(expected[name].shape, dtype=expected[name].dtype)
            file.seek(8 + header_bytes + offset)
            if file.readinto(_bytes_of(tensors[name])) != expected[name].num_bytes:
                raise DamagedFileError(f"{path}: ended while {name} was read")
    return tensors, metadata


def _checked_header(
    path: Path, text: bytes, expected: dict[str, TensorSpec], *, data_bytes: int
) -> tuple[dict[str, int], dict[str, str]]:
    """Returns where each tensor starts, and the metadata."""
    header = read_json_object(text, what=f"the header of {path}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DamagedFileError(f"{path}: its metadata is not a table of strings")
    if header.keys() != expected.keys():
        raise DamagedFileError(f"{path}: holds {_shortened(header)}, expected {_shortened(expected)}")
    offsets: dict[str, int] = {}
    position = 0
    for name, entry in header.items():
        spec = expected[name]
        wanted = {
            "dtype": _CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.num_bytes],
        }
        if entry != wanted:
            raise DamagedFileError(f"{path}: {name} is {str(entry)[:200]}, expected {wanted}")
        offsets[name] = position
        position += spec.num_bytes
    if position != data_bytes:
        raise DamagedFileError(f"{path}: {data_bytes} bytes of data, but its tensors take {position}")
    return offsets, metadata


def _shortened(names: Iterable[str]) -> str:
    text = ", ".join(sorted(names)) or "nothing"
    return text if len(text) <= 200 else text[:200] + " ..."


def _bytes_of(tensor: Tensor) -> memoryview:
    """Returns the bytes of a tensor, without a copy where it lies contiguous on the CPU."""
    return tensor.detach().cpu().contiguous().numpy().reshape(-1).view("uint8").data
