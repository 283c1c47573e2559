"""A layer below Python's file functions that counts what reaches the disk and strikes at the n-th such event.

Events are what changes a file system: creating, writing, cutting, syncing, renaming, linking, removing. Files are real,
and a killed process is killed by SIGKILL. `scripts/torture_files.py --strace` compares the events counted here with
the system calls that the kernel sees.
"""

import builtins
import contextlib
import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa


class Fault(NamedTuple):
    """What happens at event `number`, counted from 0."""

    number: int
    how: str
    """`kill`: killed before it. `kill halfway`: half of a write is done, then killed. `EIO`: it fails, once.
    `ENOSPC`: it and all later events that need room fail. `ENOSPC halfway`: the same after half of a write.
    `short`: half of a write is done and the caller is told so."""


HOWS = ("kill", "kill halfway", "EIO", "ENOSPC", "ENOSPC halfway", "short")
WRITES_ONLY = ("kill halfway", "ENOSPC halfway", "short")
NEEDS_ROOM = ("create", "write", "mkdir", "symlink", "link")

_open, _os = io.open, {name: getattr(os, name) for name in ("open", "fsync", "replace", "rename", "unlink", "remove")}
_os |= {name: getattr(os, name) for name in ("mkdir", "rmdir", "symlink", "link", "ftruncate", "truncate")}


class FileEvents:
    """While installed, notes the events below a folder, and strikes."""

    def __init__(self, root: Path, fault: Fault | None = None) -> None:
        self._root = str(root)
        self._fault = fault
        self._full = False
        self._lost: set[int] = set()
        self.events: list[tuple[str, str]] = []
        """(operation, path) in order."""

    def below(self, path: Any, dir_fd: int | None = None) -> str | None:
        """Returns the path as text if it is below the root."""
        if isinstance(path, int):
            text = str(_of_descriptor(path))
        else:
            text = os.path.normpath((_of_descriptor(dir_fd) if dir_fd is not None else Path.cwd()) / path)
        return text if text.startswith(self._root + "/") or text == self._root else None

    def event(self, operation: str, path: str) -> Fault | None:
        """Counts an event; kills or raises if its time has come. Returns the fault if it concerns half a write."""
        number = len(self.events)
        self.events.append((operation, path))
        fault = self._fault
        if self._full and operation in NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if fault is None or number != fault.number:
            return None
        if fault.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.how == "EIO":
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        if fault.how == "ENOSPC":
            self._full = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if fault.how == "ENOSPC halfway":
            self._full = True
        return fault

    def written_anew(self, inode: int) -> None:
        """Forgets that an fsync failed: what it lost was cut off."""
        self._lost.discard(inode)

    # -- what stands in for Python's functions

    def _opened(self, file: Any, mode: str = "r", buffering: int = -1, *arguments: Any, **options: Any) -> Any:
        path = None if isinstance(file, int) else self.below(file)
        if path is None or not set(mode) & set("wax+"):
            return _open(file, mode, buffering, *arguments, **options)
        if not Path(path).exists() or "w" in mode:
            self.event("create", path)
        raw = _CountedFile(path, mode.replace("b", "").replace("t", ""), self)
        if buffering == 0:
            return raw
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding=options.get("encoding"))

    def _os_open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        found = self.below(path, dir_fd)
        if found is not None and flags & os.O_CREAT and not Path(found).exists():
            self.event("create", found)
        return _os["open"](path, flags, mode, dir_fd=dir_fd)

    def _named(self, name: str) -> Callable[..., Any]:
        """Returns what stands in for a function whose first argument is what it changes."""
        operation = {"remove": "unlink", "ftruncate": "truncate"}.get(name, name)

        def function(path: Any, *arguments: Any, **options: Any) -> Any:
            found = self.below(path, options.get("dir_fd"))
            if found is not None:
                self.event(operation, found)
            return _os[name](path, *arguments, **options)

        return function

    def _fsync(self, descriptor: int) -> None:
        path, inode = self.below(descriptor), os.fstat(descriptor).st_ino
        if path is not None:
            assert inode not in self._lost, f"{path} was synced again after a failed fsync, which then means nothing"
            try:
                self.event("fsync", path)
            except OSError:
                if not Path(path).is_dir():
                    self._lost.add(inode)
                raise
        _os["fsync"](descriptor)

    def _renamed(self, name: str) -> Callable[..., Any]:
        """Returns what stands in for a function whose second argument is what it makes."""
        operation = {"replace": "rename"}.get(name, name)

        def function(source: Any, target: Any, *arguments: Any, **options: Any) -> Any:
            found = self.below(target)
            if found is not None:
                self.event(operation, found)
            return _os[name](source, target, *arguments, **options)

        return function

    @contextlib.contextmanager
    def installed(self) -> Iterator["FileEvents"]:
        """Everything inside goes through this layer. Arrow writes by C++; here it is given a Python file instead."""
        first = ("unlink", "remove", "mkdir", "rmdir", "ftruncate", "truncate")
        second = ("replace", "rename", "symlink", "link")
        patches: list[tuple[Any, str, Any]] = [(builtins, "open", self._opened), (io, "open", self._opened)]
        patches += [(os, "open", self._os_open), (os, "fsync", self._fsync), *((os, name, self._named(name)) for name in first)]
        patches += [(os, name, self._renamed(name)) for name in second]
        real_os_file = pa.OSFile

        def os_file(path: Any, mode: str = "r", **options: Any) -> Any:
            if "w" not in mode:
                return real_os_file(path, mode, **options)
            self.event("create", str(path))
            return pa.PythonFile(_WholeFile(str(path), "w", self), mode="w")

        patches.append((pa, "OSFile", os_file))
        before = [(module, name, getattr(module, name)) for module, name, _ in patches]
        try:
            for module, name, function in patches:
                setattr(module, name, function)
            yield self
        finally:
            for module, name, function in before:
                setattr(module, name, function)


def _of_descriptor(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


class _CountedFile(io.FileIO):
    """A file whose writes are events."""

    def __init__(self, path: str, mode: str, layer: FileEvents) -> None:
        super().__init__(path, mode)
        self._layer = layer
        self._path = path

    def write(self, data: Any) -> int:
        """Writes, or half of it."""
        view = memoryview(data).cast("B")
        fault = self._layer.event("write", self._path)
        if fault is None or len(view) < 2:
            return super().write(view)
        done = super().write(view[: len(view) // 2])
        if fault.how == "kill halfway":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.how == "ENOSPC halfway" and len(view) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        return done

    def truncate(self, size: int | None = None) -> int:
        """Cuts."""
        self._layer.event("truncate", self._path)
        self._layer.written_anew(os.fstat(self.fileno()).st_ino)
        return super().truncate(size)


class _WholeFile(_CountedFile):
    """One that goes on after a short write, as Arrow's own does; Arrow takes it for granted of a Python file."""

    def write(self, data: Any) -> int:
        """Writes all."""
        view = memoryview(data).cast("B")
        left = view
        while left:
            left = left[super().write(left) :]
        return len(view)
