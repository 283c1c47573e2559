"""What a disk holds and what of it is synced, and what a power cut leaves; for `disk`."""

import io
import os
import random

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


def keep_bytes(node: Node, path: str) -> None:
    """Remembers the bytes of a file that may lose its last name."""
    if node.kind == "file":
        with io_open(path, "rb") as file:
            node.content = file.read()


def cut_power(top: Node, root: str, rng: random.Random) -> None:
    """Leaves in a folder what was synced, and of the rest what chance leaves."""
    _collect(top, root)
    mercy = rng.choice((0.0, 0.0, 0.5, 1.0))
    shutil_rmtree(root)
    os_mkdir(root)
    _restore(top, root, rng, mercy, {})


def _collect(folder: Node, path: str) -> None:
    for name, node in folder.entries.items():
        if node.kind == "folder":
            _collect(node, f"{path}/{name}")
        else:
            keep_bytes(node, f"{path}/{name}")


def _restore(folder: Node, path: str, rng: random.Random, mercy: float, written: dict[int, str]) -> None:
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
            _restore(node, place, rng, mercy, written)
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
