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
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from simulator.clock import Killed, Process, current_process

BUFFER_BYTES = 8192
_OPENED_READ_ONLY = ("r", "rb", "rt")


class Node:
    """A file, folder or link, whatever names it has."""

    __slots__ = ("changes", "content", "entries", "kind", "safe_bytes", "safe_content", "safe_entries", "target")

    def __init__(self, kind: str, target: str = "") -> None:
        self.kind = kind
        self.target = target
        self.content: bytes | None = None
        """Bytes of a file without a name."""
        self.safe_bytes = 0
        """How far a file's bytes are synced."""
        self.safe_content: bytes | None = None
        """What was synced before the file was cut or written anew."""
        self.entries: dict[str, Node] = {}
        self.safe_entries: dict[str, Node] = {}
        self.changes: list[list[tuple[str, Node | None]]] = []
        """Changes of names since the folder was synced; each happens as a whole."""


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

    def _kept_bytes(self, node: Node, path: str) -> None:
        """Remembers the bytes of a file that may lose its last name."""
        if node.kind == "file":
            with io_open(path, "rb") as file:
                node.content = file.read()

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
            return io_open(path, mode, *arguments, **options)
        process = current_process()
        if process is not None and not process.alive:
            raise Killed
        if mode in _OPENED_READ_ONLY:
            return io_open(path, mode, *arguments, **options)
        flags = os.O_RDWR if "+" in mode else os.O_WRONLY
        flags |= os.O_CREAT | (os.O_APPEND if "a" in mode else os.O_TRUNC if "w" in mode else 0)
        descriptor = self.os_open(path, flags | (os.O_EXCL if "x" in mode else 0))
        raw = options.get("buffering", arguments[0] if arguments else -1) == 0
        return SimFile(self, descriptor, text="b" not in mode, raw=raw, name=str(path))

    def os_open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        """Stands in for `os.open`."""
        parts = self._parts(path)
        if parts is None:
            return os_open(path, flags, mode, **options)
        node = self._find(parts)
        if flags & os.O_CREAT and node is None:
            folder = self._folder_of(parts)
            self._before("create", parts)
            descriptor = os_open(path, flags, mode)
            node = Node("file")
            self._change(folder, (parts[-1], node))
            self._settled()
        else:
            if flags & os.O_TRUNC and node is not None:
                self._before("truncate", parts)
                self._cut(node, str(path), 0)
            descriptor = os_open(path, flags, mode)
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
        os_close(descriptor)

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
            os_write(file.descriptor, bytes(file.buffer[:done]))
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
            os_fsync(descriptor)
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
            return os_pwrite(descriptor, data, offset)
        _, node, path = self._open[descriptor]
        process = current_process()
        if process is not None and not process.alive:
            raise Killed
        strike = self._effect("write", kind_of(self._parts(path) or []), path)
        if node.safe_bytes > offset:
            self._cut(node, path, offset)
        done = len(data) if strike is None else int(len(data) * strike.share)
        if done:
            os_pwrite(descriptor, data[:done], offset)
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
            os_ftruncate(descriptor, size)
            return
        _, node, path = self._open[descriptor]
        self._before("truncate", self._parts(path) or [])
        self._cut(node, path, size)
        os_ftruncate(descriptor, size)
        self._settled()

    def truncate(self, file: "SimFile", size: int) -> None:
        """Cuts an open file."""
        self.ftruncate(file.descriptor, size)

    def _cut(self, node: Node, path: str, size: int) -> None:
        if node.safe_content is None and node.safe_bytes > size:
            with io_open(path, "rb") as file:
                node.safe_content = file.read()[: node.safe_bytes]
        node.safe_bytes = min(node.safe_bytes, size)

    def replace(self, source: Any, target: Any, **options: Any) -> None:
        """Stands in for `os.replace` and `os.rename`."""
        old, new = self._parts(source), self._parts(target)
        if old is None or new is None:
            os_replace(source, target, **options)
            return
        folder, into = self._folder_of(old), self._folder_of(new)
        node = folder.entries.get(old[-1])
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
        self._before("rename", new)
        replaced = into.entries.get(new[-1])
        if replaced is not None:
            self._kept_bytes(replaced, str(target))
        os_replace(source, target)
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
            os_unlink(path, **options)
            return
        folder = self._find(parts[:-1])
        node = folder.entries.get(parts[-1]) if folder is not None else None
        if folder is None or node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._before("unlink", parts)
        self._kept_bytes(node, str(path))
        os_unlink(path)
        self._change(folder, (parts[-1], None))
        self._settled()

    def mkdir(self, path: Any, mode: int = 0o777, **options: Any) -> None:
        """Stands in for `os.mkdir`."""
        parts = self._parts(path)
        if not parts:
            os_mkdir(path, mode, **options)
            return
        folder = self._folder_of(parts)
        if parts[-1] in folder.entries:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._before("mkdir", parts)
        os_mkdir(path, mode)
        self._change(folder, (parts[-1], Node("folder")))
        self._settled()

    def rmdir(self, path: Any, **options: Any) -> None:
        """Stands in for `os.rmdir`."""
        parts = self._parts(path)
        if parts is None:
            os_rmdir(path, **options)
            return
        folder = self._folder_of(parts)
        if parts[-1] not in folder.entries:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self._before("rmdir", parts)
        os_rmdir(path)
        self._change(folder, (parts[-1], None))
        self._settled()

    def symlink(self, target: Any, path: Any, *arguments: Any, **options: Any) -> None:
        """Stands in for `os.symlink`."""
        parts = self._parts(path)
        if parts is None:
            os_symlink(target, path, *arguments, **options)
            return
        folder = self._folder_of(parts)
        if parts[-1] in folder.entries:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._before("symlink", parts)
        os_symlink(target, path)
        self._change(folder, (parts[-1], Node("link", str(target))))
        self._settled()

    def link(self, source: Any, path: Any, **options: Any) -> None:
        """Stands in for `os.link`."""
        old, parts = self._parts(source), self._parts(path)
        node = self._find(old) if old is not None else None
        if parts is None or node is None:
            os_link(source, path, **options)
            return
        self._before("link", parts)
        os_link(source, path)
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
        self._collect(self._top, self.root)
        mercy = rng.choice((0.0, 0.0, 0.5, 1.0))
        shutil_rmtree(self.root)
        os_mkdir(self.root)
        written: dict[int, str] = {}
        self._restore(self._top, self.root, rng, mercy, written)

    def _collect(self, folder: Node, path: str) -> None:
        for name, node in folder.entries.items():
            if node.kind == "folder":
                self._collect(node, f"{path}/{name}")
            else:
                self._kept_bytes(node, f"{path}/{name}")

    def _restore(self, folder: Node, path: str, rng: random.Random, mercy: float, written: dict[int, str]) -> None:
        kept = 0 if mercy == 0.0 else len(folder.changes) if mercy == 1.0 else rng.randint(0, len(folder.changes))
        entries = dict(folder.safe_entries)
        for changes in folder.changes[:kept]:
            for name, node in changes:
                if node is None:
                    entries.pop(name, None)
                else:
                    entries[name] = node
        folder.entries, folder.safe_entries, folder.changes = entries, dict(entries), []
        for name, node in entries.items():
            place = f"{path}/{name}"
            if node.kind == "folder":
                os_mkdir(place)
                self._restore(node, place, rng, mercy, written)
            elif node.kind == "link":
                os_symlink(node.target, place)
            elif id(node) in written:
                os_link(written[id(node)], place)
            else:
                written[id(node)] = place
                content = _surviving(node, rng, mercy)
                with io_open(place, "wb") as file:
                    file.write(content)
                node.safe_bytes, node.safe_content, node.content = len(content), None, None


def _surviving(node: Node, rng: random.Random, mercy: float) -> bytes:
    """Returns what a file may hold after a power cut."""
    now = node.content or b""
    if mercy == 1.0:
        return now
    if node.safe_content is not None and (mercy == 0.0 or rng.random() < 0.5):
        return node.safe_content
    if mercy == 0.0 or len(now) <= node.safe_bytes:
        return now[: node.safe_bytes]
    kept = rng.randint(node.safe_bytes, len(now))
    zeros = len(now) - kept if rng.random() < 0.3 else 0  # the size was written down, the block was not
    return now[:kept] + bytes(zeros)


def kind_of(parts: list[str]) -> str:
    """Returns the name of a kind of file, such as `metrics.jsonl` for that of any trial."""
    if not parts:
        return "storage"
    if parts[0] == "artifacts":
        return "artifact"
    name = parts[-1]
    if name.startswith("checkpoint-"):
        return "checkpoint.tmp" if name.endswith(".tmp") else "checkpoint"
    if name.startswith("study.journal.lock"):
        return "journal lock"
    if name.startswith(".write-test"):
        return "write test"
    if len(parts) > 1 and parts[-2] == "trials":
        return "trial folder"
    if len(parts) > 1 and parts[-2] == "sweeps":
        return "sweep folder"
    if len(parts) > 1 and parts[-2].startswith("sae"):
        return f"sae {re.sub(r'[^a-z.]', '', name)}"
    return name


class SimFile:
    """A file opened for writing, with the buffer that Python's own has: gone when its process is killed."""

    def __init__(self, disk: Disk, descriptor: int, *, text: bool, raw: bool, name: str) -> None:
        self._disk = disk
        self.descriptor = descriptor
        self.buffer = bytearray()
        self.closed = False
        self.name = name
        self._text = text
        self._raw = raw
        disk._files[descriptor] = self

    def write(self, data: Any) -> int:
        """Adds to the buffer; a full one goes to the operating system."""
        self.buffer += data.encode() if isinstance(data, str) else bytes(data)
        if self._raw:
            try:
                self.flush()
            finally:
                self.buffer.clear()  # what could not be written is the caller's again
        elif len(self.buffer) > BUFFER_BYTES:
            self.flush()
        return len(data)

    def flush(self) -> None:
        """Empties the buffer."""
        if self.closed:
            raise Killed
        if self.buffer:
            self._disk.write(self)

    def fileno(self) -> int:
        """Returns the real descriptor."""
        return self.descriptor

    def read(self) -> Any:
        """Returns the rest of the file."""
        data = bytearray()
        while part := os.read(self.descriptor, 1 << 16):
            data += part
        return data.decode() if self._text else bytes(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves to a place."""
        self.flush()
        return os.lseek(self.descriptor, offset, whence)

    def tell(self) -> int:
        """Returns the place."""
        return os.lseek(self.descriptor, 0, os.SEEK_CUR) + len(self.buffer)

    def truncate(self, size: int | None = None) -> int:
        """Cuts the file."""
        self.flush()
        size = self.tell() if size is None else size
        self._disk.truncate(self, size)
        return size

    def close(self) -> None:
        """Empties the buffer and closes; an error while emptying comes through, the descriptor is closed all the same."""
        if self.closed:
            return
        process = current_process()
        if process is not None and not process.alive:
            return  # the kernel closes it; see Disk.drop
        try:
            self.flush()
        finally:
            if process is None or process.alive:
                self.closed = True
                self._disk.close(self.descriptor)

    def __enter__(self) -> "SimFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


# The real functions, taken before anything is replaced.
io_open, os_open, os_close, os_fsync, os_write = io.open, os.open, os.close, os.fsync, os.write
os_replace, os_unlink, os_mkdir, os_rmdir = os.replace, os.unlink, os.mkdir, os.rmdir
os_symlink, os_link, os_pwrite, os_ftruncate = os.symlink, os.link, os.pwrite, os.ftruncate


def shutil_rmtree(path: str) -> None:
    """Removes a folder with the real functions."""
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            shutil_rmtree(entry.path)
        else:
            os_unlink(entry.path)
    os_rmdir(path)


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
