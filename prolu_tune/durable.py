"""Files that survive a crash at any moment with the old bytes or the new: replaced whole, or extended by sealed lines."""

import contextlib
import errno
import json
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_SEAL = re.compile(rb',"crc32":"([0-9a-f]{8})"\}\n')
_SEAL_BYTES = 21


class DamagedLineError(ValueError):
    """A line is not what was written."""


def replace_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Puts a file with this content in place of `path`: temporary name beside it, flush, fsync, rename, fsync of the folder.

    Raises:
        OSError: if it cannot be written; what stood at `path` is untouched and the temporary file is gone.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def extend_file(path: Path, data: bytes, *, at: int) -> None:
    """Puts `data` at byte `at`, the file's end, and syncs it; a longer file is cut there first.

    Opened anew each time: after a failed fsync the kernel takes the lost pages for written, so a second fsync on the
    same descriptor would succeed and mean nothing. Cutting the file back throws such pages away.

    Raises:
        OSError: if it cannot be written; the file then ends at `at` again, now or at the next call.
    """
    made = not path.exists()
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size < at:
            raise OSError(errno.EIO, f"holds {size} bytes of the {at} that were written")
        if size > at:
            file.truncate(at)
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(at)
            raise
    if made:
        sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it; when this returns, a power cut leaves it where it is.

    Its parent is synced even if the folder was there: who made it may have been killed before syncing.

    Raises:
        OSError: if that fails.
    """
    above = [folder.parent for folder in path.parents if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in (path.parent, *above):
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sealed(record: dict[str, Any]) -> bytes:
    """Returns a line of JSON that ends with the checksum of what stands before it; the record must not be empty."""
    body = json.dumps(record, separators=(",", ":")).encode()[:-1]
    return body + b',"crc32":"%08x"}\n' % zlib.crc32(body)


def unsealed(line: bytes) -> dict[str, Any]:
    """Returns the record of a sealed line.

    Raises:
        DamagedLineError: if it is cut, altered, or was never sealed.
    """
    body, seal = line[:-_SEAL_BYTES], _SEAL.fullmatch(line, max(0, len(line) - _SEAL_BYTES))
    if seal is None:
        raise DamagedLineError("it does not end in a checksum")
    if b"%08x" % zlib.crc32(body) != seal[1]:
        raise DamagedLineError("its checksum is another")
    try:
        record = json.loads(body + b"}")
    except (ValueError, RecursionError) as error:
        raise DamagedLineError(f"it is not JSON ({type(error).__name__})") from error
    if not isinstance(record, dict):
        raise DamagedLineError("it is not a JSON object")
    return record
