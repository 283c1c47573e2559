"""A fake disk over a real folder: it knows what was synced, so that a power cut leaves a state that a disk may leave.

What counts as safe is what POSIX promises and no more: a file's bytes after its fsync, a name in a folder after that
folder's fsync. Everything else may be there after a power cut, or not, or in part. A killed process loses what it has
in its own buffers only. Each effect has a name such as `write study.journal`; faults strike at these names.
"""

import builtins
import errno
import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from simulator import disk_state as real
from simulator.clock import Killed, Process, current_process
from simulator.disk_state import Node, cut_power, keep_bytes
from simulator.failpoints import kind_of
from simulator.sim_file import SimFile

_OPENED_READ_ONLY = ("r", "rb", "rt")


class Strike(NamedTuple):
    """How an effect fails: after a share of it was done, with this error number."""

    number: int
    share: float


class Disk:
    """The disk of one simulation. While installed, Python's own file functions go through it for paths below its root."""

    def __init__(self, root: Path, effect: Callable[[str, str, str], Strike | None], settled: Callable[[], None]) -> None:
        """`effect(operation, kind, path)` is called before each effect and may raise; `settled()` is called after it."""
        self.root = str(root)
        self._prefix = self.root + "/"
        self._effect = effect
        self._settled = settled
        self._top = Node("folder")
        self._open: dict[int, tuple[Process | None, Node, str]] = {}
        self._files: dict[int, SimFile] = {}

    # -- what is where

    def _parts(self, path: Any) -> list[str] | None:
        text = path if type(path) is str else os.fspath(path) if isinstance(path, os.PathLike) else None
        if not isinstance(text, str) or not text.startswith(self._prefix):
            return [] if text == self.root else None
        return text[len(self._prefix) :].rstrip("/").split("/")

    def _find(self, parts: list[str]) -> Node | None:
        node = self._top
        for part in parts:
            found = node.entries.get(part)
            if found is None:
                return None
            node = found
        return node

    def _folder_of(self, parts: list[str]) -> Node:
        folder = self._find(parts[:-1])
        if folder is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/".join(parts))
        return folder

    def _before(self, operation: str, parts: list[str]) -> None:
        process = current_process()
        if process is not None and not process.alive:
            raise Killed
        strike = self._effect(operation, kind_of(parts), "/".join(parts))
        if strike is not None:
            raise OSError(strike.number, os.strerror(strike.number), "/".join(parts))

    def _change(self, folder: Node, *changes: tuple[str, Node | None]) -> None:
        for name, node in changes:
            if node is None:
                folder.entries.pop(name, None)
            else:
                folder.entries[name] = node
        folder.changes.append(list(changes))

    # -- Python's file functions

    def open(self, path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        """Stands in for `open`."""
        parts = self._parts(path)
        if parts is None:
            return real.io_open(path, mode, *arguments, **options)
        process = current_process()
        if process is not None and not process.alive:
            raise Killed
        if mode in _OPENED_READ_ONLY:
            return real.io_open(path, mode, *arguments, **options)
        flags = os.O_RDWR if "+" in mode else os.O_WRONLY
        flags |= os.O_CREAT | (os.O_APPEND if "a" in mode else os.O_TRUNC if "w" in mode else 0)
        descriptor = self.os_open(path, flags | (os.O_EXCL if "x" in mode else 0))
        raw = options.get("buffering", arguments[0] if arguments else -1) == 0
        return SimFile(self, descriptor, text="b" not in mode, raw=raw, name=str(path))

    def os_open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        """Stands in for `os.open`."""
        parts = self._parts(path)
        if parts is None:
            return real.os_open(path, flags, mode, **options)
        node = self._find(parts)
        if flags & os.O_CREAT and node is None:
            folder = self._folder_of(parts)
            self._before("create", parts)
            descriptor = real.os_open(path, flags, mode)
            node = Node("file")
            self._change(folder, (parts[-1], node))
            self._settled()
        else:
            if flags & os.O_TRUNC and node is not None:
                self._before("truncate", parts)
                self._cut(node, str(path), 0)
            descriptor = real.os_open(path, flags, mode)
        if node is not None:
            self._open[descriptor] = (current_process(), node, str(path))
        return descriptor

    def close(self, descriptor: int) -> None:
        """Stands in for `os.close`."""
        process = current_process()
        if process is not None and not process.alive:
            return  # the kernel closed it when the process died; the number may be another file's by now
        self._shut(descriptor)

    def _shut(self, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        self._files.pop(descriptor, None)
        real.os_close(descriptor)

    def write(self, file: "SimFile") -> None:
        """Hands a file's buffer to the operating system; what a strike leaves over stays in the buffer."""
        path = self._open[file.descriptor][2]
        parts = self._parts(path) or []
        process = current_process()
        if process is not None and not process.alive:
            raise Killed
        strike = self._effect("write", kind_of(parts), path)
        done = len(file.buffer) if strike is None else int(len(file.buffer) * strike.share)
        if done:
            real.os_write(file.descriptor, bytes(file.buffer[:done]))
        del file.buffer[:done]
        if strike is not None:
            if strike.number < 0:
                self._settled()  # ends the process
                raise Killed
            raise OSError(strike.number, os.strerror(strike.number), path)
        self._settled()

    def fsync(self, descriptor: int) -> None:
        """Stands in for `os.fsync`."""
        if descriptor not in self._open:
            real.os_fsync(descriptor)
            return
        _, node, path = self._open[descriptor]
        self._before("fsync", self._parts(path) or [])
        if node.kind == "folder":
            node.safe_entries = dict(node.entries)
            node.changes.clear()
        else:
            node.safe_bytes = os.fstat(descriptor).st_size
            node.safe_content = None
        self._settled()

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        """Stands in for `os.pwrite`; may write less than it was given, as the real one may."""
        if descriptor not in self._open:
            return real.os_pwrite(descriptor, data, offset)
        _, node, path = self._open[descriptor]
        process = current_process()
        if process is not None and not process.alive:
            raise Killed
        strike = self._effect("write", kind_of(self._parts(path) or []), path)
        if node.safe_bytes > offset:
            self._cut(node, path, offset)
        done = len(data) if strike is None else int(len(data) * strike.share)
        if done:
            real.os_pwrite(descriptor, data[:done], offset)
        if strike is not None:
            if strike.number < 0:
                self._settled()  # ends the process
                raise Killed
            raise OSError(strike.number, os.strerror(strike.number), path)
        self._settled()
        return len(data)

    def ftruncate(self, descriptor: int, size: int) -> None:
        """Stands in for `os.ftruncate`."""
        if descriptor not in self._open:
            real.os_ftruncate(descriptor, size)
            return
        _, node, path = self._open[descriptor]
        self._before("truncate", self._parts(path) or [])
        self._cut(node, path, size)
        real.os_ftruncate(descriptor, size)
        self._settled()

    def truncate(self, file: "SimFile", size: int) -> None:
        """Cuts an open file."""
        self.ftruncate(file.descriptor, size)

    def _cut(self, node: Node, path: str, size: int) -> None:
        if node.safe_content is None and node.safe_bytes > size:
            with real.io_open(path, "rb") as file:
                node.safe_content = file.read()[: node.safe_bytes]
        node.safe_bytes = min(node.safe_bytes, size)

    def replace(self, source: Any, target: Any, **options: Any) -> None:
        """Stands in for `os.replace` and `os.rename`."""
        old, new = self._parts(source), self._parts(target)
        if old is None or new is None:
            real.os_replace(source, target, **options)
            return
        folder, into = self._folder_of(old), self._folder_of(new)
        node = folder.entries.get(old[-1])
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
        self._before("rename", new)
        replaced = into.entries.get(new[-1])
        if replaced is not None:
            keep_bytes(replaced, str(target))
        real.os_replace(source, target)
        if folder is into:
            self._change(folder, (old[-1], None), (new[-1], node))
        else:
            self._change(into, (new[-1], node))
            self._change(folder, (old[-1], None))
        self._settled()

    def unlink(self, path: Any, **options: Any) -> None:
        """Stands in for `os.unlink` and `os.remove`."""
        parts = self._parts(path)
        if parts is None:
            real.os_unlink(path, **options)
            return
        folder = self._find(parts[:-1])
        node = folder.entries.get(parts[-1]) if folder is not None else None
        if folder is None or node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._before("unlink", parts)
        keep_bytes(node, str(path))
        real.os_unlink(path)
        self._change(folder, (parts[-1], None))
        self._settled()

    def mkdir(self, path: Any, mode: int = 0o777, **options: Any) -> None:
        """Stands in for `os.mkdir`."""
        parts = self._parts(path)
        if not parts:
            real.os_mkdir(path, mode, **options)
            return
        folder = self._folder_of(parts)
        if parts[-1] in folder.entries:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._before("mkdir", parts)
        real.os_mkdir(path, mode)
        self._change(folder, (parts[-1], Node("folder")))
        self._settled()

    def rmdir(self, path: Any, **options: Any) -> None:
        """Stands in for `os.rmdir`."""
        parts = self._parts(path)
        if parts is None:
            real.os_rmdir(path, **options)
            return
        folder = self._folder_of(parts)
        if parts[-1] not in folder.entries:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._before("rmdir", parts)
        real.os_rmdir(path)
        self._change(folder, (parts[-1], None))
        self._settled()

    def symlink(self, target: Any, path: Any, *arguments: Any, **options: Any) -> None:
        """Stands in for `os.symlink`."""
        parts = self._parts(path)
        if parts is None:
            real.os_symlink(target, path, *arguments, **options)
            return
        folder = self._folder_of(parts)
        if parts[-1] in folder.entries:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._before("symlink", parts)
        real.os_symlink(target, path)
        self._change(folder, (parts[-1], Node("link", str(target))))
        self._settled()

    def link(self, source: Any, path: Any, **options: Any) -> None:
        """Stands in for `os.link`."""
        old, parts = self._parts(source), self._parts(path)
        node = self._find(old) if old is not None else None
        if parts is None or node is None:
            real.os_link(source, path, **options)
            return
        self._before("link", parts)
        real.os_link(source, path)
        self._change(self._folder_of(parts), (parts[-1], node))
        self._settled()

    # -- crashes

    def drop(self, process: Process) -> None:
        """Closes what a dead process had open; its buffers are gone, its locks free."""
        for descriptor, (owner, _, _) in list(self._open.items()):
            if owner is process:
                file = self._files.get(descriptor)
                if file is not None:
                    file.closed = True
                self._shut(descriptor)

    def cut_power(self, rng: random.Random) -> None:
        """Leaves on disk what was synced, and of the rest what chance leaves."""
        cut_power(self._top, self.root, rng)


def replacements(disk: Disk) -> list[tuple[Any, str, Any]]:
    """Returns what to set while the disk is installed: (owner, name, value)."""
    return [
        (builtins, "open", disk.open),
        (io, "open", disk.open),
        (os, "open", disk.os_open),
        (os, "close", disk.close),
        (os, "fsync", disk.fsync),
        (os, "pwrite", disk.pwrite),
        (os, "ftruncate", disk.ftruncate),
        (os, "replace", disk.replace),
        (os, "rename", disk.replace),
        (os, "unlink", disk.unlink),
        (os, "remove", disk.unlink),
        (os, "mkdir", disk.mkdir),
        (os, "rmdir", disk.rmdir),
        (os, "symlink", disk.symlink),
        (os, "link", disk.link),
        (shutil, "_use_fd_functions", False),
        (shutil, "_USE_CP_SENDFILE", False),
    ]
