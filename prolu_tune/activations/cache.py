"""Chunks of activations on a node's disk: made once, shared by all processes as memory maps, evicted oldest first."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from prolu_tune.activations.arrow_files import DamagedFileError, exclusive, find, fixed_rows, open_mapped, publish
from prolu_tune.errors import InputError, SurroundingsError

FLOAT16_MAX = 65_504.0
OPEN_ATTEMPTS = 5
"""A chunk may be evicted or found damaged between being made and being opened; then it is made again, so many times."""


def ignore(message: str) -> None:
    """Takes a message and does nothing with it: for callers that have nobody to tell."""


def chunk_name(index: int) -> str:
    """Returns the name of chunk `index` of the training stream."""
    return f"train-{index:07d}"


def open_chunk(path: Path, *, tokens: int, d_in: int) -> np.ndarray:
    """Returns a chunk's activations (tokens, d_in), float16, memory-mapped; verified at the first opening in a process.

    Raises:
        FileNotFoundError: if it has been evicted.
        DamagedFileError: if it is not what was written.
    """
    _, arrays = open_mapped(path)
    if len(arrays) != 1 or arrays[0].dtype != np.float16 or arrays[0].shape != (tokens, d_in):
        raise DamagedFileError(f"{path.name} does not hold {tokens} float16 activations {d_in} wide")
    return arrays[0]


def open_or_remake(ensure: Callable[[], Path], *, tokens: int, d_in: int, say: Callable[[str], None] = ignore) -> np.ndarray:
    """Returns the chunk that `ensure` names, asking again when it was evicted meanwhile or is damaged (which is said).

    Args:
        ensure: makes the chunk if it is missing and returns its file; may be a call to another process.
        tokens: activations it must hold.
        d_in: width of the hook.
        say: told about a damaged file.

    Raises:
        SurroundingsError: if it is gone or damaged time and again.
    """
    path = ensure()
    for _ in range(OPEN_ATTEMPTS):
        try:
            return open_chunk(path, tokens=tokens, d_in=d_in)
        except FileNotFoundError:
            path = ensure()
        except DamagedFileError as error:
            say(f"damaged activation cache file, computed again: {error}")
            path.unlink(missing_ok=True)
            path = ensure()
    raise SurroundingsError(
        f"{path} was lost or damaged {OPEN_ATTEMPTS} times in a row; check the disk, or raise activations.cache_gb "
        "so that chunks are not evicted while they are needed"
    )


class ChunkStore:
    """The chunks of one fingerprint in a node's cache folder.

    Chunks of all fingerprints share the folder and its limit. A chunk's content is a pure function of its name, so a
    lost one is made again instead of restored.
    """

    def __init__(self, root: Path, fingerprint: str, *, max_bytes: int) -> None:
        """Makes nothing on disk yet.

        Args:
            root: cache folder of the node.
            fingerprint: of all that the content depends on, hex.
            max_bytes: disk that all chunks under `root` may take.
        """
        self.root = root
        self.folder = root / fingerprint[:32]
        self.max_bytes = max_bytes

    def check_size(self, chunk_bytes: int) -> None:
        """Checks that the chunk in use and the next one fit.

        Raises:
            InputError: if they do not.
        """
        if self.max_bytes < 2 * chunk_bytes:
            raise InputError(
                f"activations.cache_gb ({self.max_bytes / 1e9:g}) must hold at least two chunks of {chunk_bytes / 1e9:.3g} GB; "
                f"raise it to {2 * chunk_bytes / 1e9 + 0.01:.2f} or more, or lower activations.chunk_tokens"
            )

    def find(self, name: str) -> Path | None:
        """Returns the file of a chunk, or None if it has to be made."""
        return find(self.folder, name)

    def ensure(self, name: str, produce: Callable[[], np.ndarray]) -> Path:
        """Returns a chunk's file, made by `produce` if it is missing; one producer at a time in all processes.

        Args:
            name: of the chunk.
            produce: returns its activations (tokens, d_in), float16, C-contiguous.

        Raises:
            SurroundingsError: if the disk is full or fails.
            InputError: if the cache folder cannot be written.
        """
        path = self.find(name)
        if path is not None:
            return path
        with exclusive(self.folder):
            path = self.find(name)
            if path is None:
                activations = produce()
                path = publish(self.folder, name, lambda target: _write(target, activations))
                self._evict(keep=path)
        return path

    def _evict(self, *, keep: Path) -> None:
        """Removes the oldest chunks until the rest fits, never the newest one; open maps of them stay valid."""
        files: list[tuple[int, int, Path]] = []
        for path in self.root.glob("*/*.arrow"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size


def _write(path: Path, activations: np.ndarray) -> None:
    batch = fixed_rows(activations, name="activation")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
