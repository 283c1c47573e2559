"""Arrow files that carry the checksum of their bytes in their name, published whole, opened memory-mapped.

`NAME-<xxh3-128 of all bytes>.arrow`: one rename publishes data and checksum together, any Arrow reader opens it, and
two producers of the same content publish the same file.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from prolu_tune.errors import InputError, SurroundingsError

SUFFIX = ".arrow"
_MAGIC = b"ARROW1\0\0"
_verified: set[tuple[str, int, int, int]] = set()


class DamagedFileError(Exception):
    """A cache file is not what was written; its owner removes and recomputes it."""


def find(folder: Path, name: str) -> Path | None:
    """Returns the published file of a name, or None."""
    return min(folder.glob(f"{name}-{'[0-9a-f]' * 32}{SUFFIX}"), default=None)


def publish(folder: Path, name: str, write: Callable[[Path], None]) -> Path:
    """Returns the file that `write` has filled, under its final name; readers see all of it or nothing.

    It is not synced to disk: a file torn by a power cut fails its checksum and is made again.

    Raises:
        SurroundingsError: if the disk is full or fails.
        InputError: if the folder cannot be written.
    """
    temporary = folder / f"{name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(temporary)
        path = folder / f"{name}-{file_checksum(temporary)}{SUFFIX}"
        temporary.replace(path)
    except (OSError, pa.ArrowException) as error:
        raise cache_error(error, folder) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def cache_error(error: OSError | pa.ArrowException, folder: Path) -> SurroundingsError | InputError:
    """Returns the error a person can act on for a failed write into the cache."""
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.ENOSPC or "No space left" in str(error):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(folder).free
            return SurroundingsError(
                f"the disk that holds the activation cache {folder} is full ({free / 1e9:.2f} GB free); "
                "free some space or lower activations.cache_gb, then run the same command again"
            )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return InputError(f"cannot write the activation cache {folder} ({error}); choose another folder with --storage")
    return SurroundingsError(f"cannot write the activation cache {folder} ({error}); run the same command again when it works")


def file_checksum(path: Path) -> str:
    """Returns the xxh3-128 of a file's bytes as 32 hex digits."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def open_mapped(path: Path) -> tuple[mmap.mmap, list[np.ndarray]]:
    """Returns a file's memory map and, per record batch, its only column as an array (rows, width) inside that map.

    The map is private: the arrays may be written to without reaching the file, which torch asks of tensors. The
    checksum is verified at the first opening in a process.

    Raises:
        FileNotFoundError: if the file is gone (evicted).
        DamagedFileError: if the bytes are not those that were written.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size == 0:
            raise DamagedFileError(f"{path.name} is empty")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    key = (str(path), status.st_ino, status.st_mtime_ns, status.st_size)
    if key not in _verified:
        if xxhash.xxh3_128(mapped).hexdigest() != path.stem.rpartition("-")[2]:
            raise DamagedFileError(f"{path.name} does not have the checksum of its name")
        _verified.add(key)
    try:
        return mapped, _arrays(mapped)
    except (pa.ArrowException, LookupError, NotImplementedError, OSError, struct.error, ValueError) as error:
        raise DamagedFileError(f"{path.name} is not a file of fixed-width rows ({error})") from error


def _arrays(mapped: mmap.mmap) -> list[np.ndarray]:
    """Returns the column of each record batch, read message by message: nothing is allocated for what a file claims.

    Raises:
        ValueError: if it is anything but uncompressed rows of numbers; Arrow has errors of its own besides.
    """
    buffer = pa.py_buffer(mapped)
    messages = pa.ipc.MessageReader.open_stream(pa.BufferReader(buffer.slice(len(_MAGIC))))
    if mapped[: len(_MAGIC)] != _MAGIC:
        raise ValueError("no Arrow file")
    first = next(messages, None)
    if first is None or first.type != "schema":  # Arrow takes any message for a schema, and reads outside of it
        raise ValueError("no schema")
    schema = pa.ipc.read_schema(first)
    if len(schema) != 1 or not _is_rows(schema.types[0]):
        raise ValueError(f"columns {str(schema)[:100]}")
    arrays = []
    for message in messages:
        if message.type != "record batch" or _compressed(message.metadata.to_pybytes()):
            raise ValueError(f"a {message.type} that we do not write")
        arrays.append(_column(pa.ipc.read_record_batch(message, schema), mapped, buffer.address))
    return arrays


def _is_rows(kind: pa.DataType) -> bool:
    if not isinstance(kind, pa.FixedSizeListType) or kind.list_size < 1:
        return False
    return pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)


def _compressed(metadata: bytes) -> bool:
    """Returns whether a record batch's body is compressed; reading it would allocate whatever size it names.

    Arrow's flatbuffer: Message(version, header_type, header, ...), RecordBatch(length, nodes, buffers, compression).
    """
    header = _field(metadata, struct.unpack_from("<I", metadata)[0], 2)
    if header is None:
        raise ValueError("a message without a header")
    return _field(metadata, header + struct.unpack_from("<I", metadata, header)[0], 3) is not None


def _field(metadata: bytes, table: int, number: int) -> int | None:
    """Returns where a field of a flatbuffer's table stands, None if it is left out."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    place = 4 + 2 * number
    if vtable < 0:
        raise ValueError("a table outside its message")
    if place >= struct.unpack_from("<H", metadata, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", metadata, vtable + place)[0]
    return table + offset if offset else None


def _column(batch: pa.RecordBatch, mapped: mmap.mmap, base: int) -> np.ndarray:
    batch.validate()  # that buffers are as long as the rows need; Arrow itself would read on behind them
    column = batch.column(0)
    assert isinstance(column, pa.FixedSizeListArray)
    width, count = column.type.list_size, len(column)
    data = column.values.buffers()[1]
    if column.null_count or column.values.null_count or data is None:
        raise ValueError("rows without values")
    dtype = np.dtype(column.values.type.to_pandas_dtype())
    if not 0 <= data.address - base <= len(mapped) - data.size or data.size < count * width * dtype.itemsize:
        raise ValueError(f"{count} rows of {width} outside the file")
    return np.frombuffer(mapped, dtype=dtype, count=count * width, offset=data.address - base).reshape(count, width)


def fixed_rows(array: np.ndarray, *, name: str) -> pa.RecordBatch:
    """Returns a record batch over a C-contiguous array (rows, width), without copying it."""
    values = pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), array.size, [None, pa.py_buffer(array)])
    return pa.record_batch({name: pa.FixedSizeListArray.from_arrays(values, array.shape[1])})


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Only one process and one thread is inside for a folder; what killed producers left half-written is removed.

    Raises:
        SurroundingsError: if the file system fails.
        InputError: if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("ab")
    except OSError as error:
        raise cache_error(error, folder) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in folder.glob("*.tmp"):
                leftover.unlink(missing_ok=True)
        except OSError as error:
            raise cache_error(error, folder) from error
        yield
