"""Bugs in how files are written, for `planted`."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prolu_tune import durable

Change = tuple[Any, str, Any]
"""What a bug changes: owner, name, value."""


def extend_without_fsync(path: Path, data: bytes, *, at: int) -> None:
    """Appends, and leaves the bytes to the operating system."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.ftruncate(descriptor, at)
        os.pwrite(descriptor, data, at)
    finally:
        os.close(descriptor)


def append_behind_fragments(path: Path, data: bytes, *, at: int) -> None:
    """Appends at the end of the file, whatever an append that failed has left there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.pwrite(descriptor, data, os.fstat(descriptor).st_size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    durable.sync_folder(path.parent)


def rename_before_fsync(path: Path, parts: Any) -> None:
    """Replaces a file by one whose bytes are not on disk yet."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        temporary.replace(path)
        durable.sync_folder(path.parent)
        os.fsync(file.fileno())


def in_place(path: Path, parts: Any) -> None:
    """Writes a file where it stands."""
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    durable.sync_folder(path.parent)


def replaced(value: Callable[..., None]) -> list[Change]:
    """Puts another `replace_file` wherever it was imported."""
    owners = [
        module for name, module in sys.modules.items() if name.startswith("prolu_tune") and hasattr(module, "replace_file")
    ]
    return [(module, "replace_file", value) for module in owners]


def no_folder_sync() -> list[Change]:
    """Leaves names to the operating system."""
    owners = [
        module for name, module in sys.modules.items() if name.startswith("prolu_tune") and hasattr(module, "sync_folder")
    ]
    return [(module, "sync_folder", lambda folder: None) for module in owners]


def folder_without_sync() -> list[Change]:
    """Makes folders without syncing their names."""
    owners = [
        module for name, module in sys.modules.items() if name.startswith("prolu_tune") and hasattr(module, "make_folder")
    ]
    return [(module, "make_folder", lambda path: path.mkdir(parents=True, exist_ok=True)) for module in owners]
