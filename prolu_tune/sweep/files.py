"""Where a sweep keeps its files, and how they are written: replaced whole, never in place.

STORAGE/mlflow.db, artifacts/, cache/           shared by all sweeps of a storage folder
STORAGE/sweeps/NAME/space.json, study.journal, lock
STORAGE/sweeps/NAME/trials/0007/                metrics.jsonl, checkpoints, sae/, error.txt
"""

import errno
import fcntl
import functools
import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

import psutil

from prolu_tune.durable import DamagedLineError, make_folder, unsealed
from prolu_tune.errors import InputError, SurroundingsError

P = ParamSpec("P")
T = TypeVar("T")
HOLDER_S = 1.0
"""How long a driver that is refused waits for the holder's name."""
LEASE_WAIT_S = 30.0
"""How long a trial waits for the process of a dead driver to leave its folder."""
LEASE_LOOK_S = 0.2


@dataclass(frozen=True)
class SweepFolder:
    """The files of one sweep."""

    root: Path

    @classmethod
    def of(cls, storage: Path, name: str) -> "SweepFolder":
        """Returns the folder of a sweep in a storage folder; makes nothing."""
        return cls(storage.absolute() / "sweeps" / name)

    @property
    def space_file(self) -> Path:
        """The search space as it ran, JSON."""
        return self.root / "space.json"

    @property
    def journal_file(self) -> Path:
        """Optuna's journal: the truth about the sweep."""
        return self.root / "study.journal"

    @property
    def ray_folder(self) -> Path:
        """Tune's own snapshots; never read back, removed when the sweep ends."""
        return self.root / "ray"

    @property
    def local_ray_file(self) -> Path:
        """Names the folder of the Ray that the driver has started on its machine."""
        return self.root / "local_ray.json"

    def trial(self, index: int) -> Path:
        """Returns the folder of a trial; makes nothing."""
        return self.root / "trials" / f"{index:04d}"

    def create(self) -> None:
        """Makes the folder and checks that it can be written.

        Raises:
            SurroundingsError: if it cannot.
        """
        probe = self.root / ".write-test"
        try:
            for folder in (self.root.parent.parent, self.root.parent, self.root, self.root / "trials"):
                make_folder(folder)
            probe.write_bytes(b"prolu-tune")
            probe.unlink(missing_ok=True)  # another driver, about to be refused, may have been faster
        except OSError as error:
            raise surroundings_error(error, self.root) from error

    def archive(self) -> Path:
        """Moves the whole folder aside and returns where it went."""
        target = self.root.with_name(f"{self.root.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        self.root.replace(target)
        return target

    def remove_scratch(self) -> None:
        """Removes what only a running driver needs."""
        shutil.rmtree(self.ray_folder, ignore_errors=True)


def surroundings_error(error: OSError, path: Path) -> SurroundingsError | InputError:
    """Returns the error a person can act on for a failed file operation under `path`."""
    if error.errno == errno.ENOSPC:
        return SurroundingsError(f"the disk that holds {path} is full; free some space, then run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return InputError(f"cannot write to {path} ({error.strerror}); choose another folder with --storage")
    return SurroundingsError(f"cannot use {path} ({error.strerror}); run the same command again when it works")


def read_stored(path: Path) -> dict[str, Any]:
    """Returns the record in a small file of ours, one sealed line.

    Raises:
        SurroundingsError: if it is damaged, which no crash of ours can do, or cannot be read.
    """
    try:
        return unsealed(path.read_bytes())
    except DamagedLineError as error:
        raise SurroundingsError(
            f"{path} is damaged: {error}; restore it from a backup, or remove it: what it tells is then worked out again"
        ) from None
    except OSError as error:
        raise SurroundingsError(
            f"{path} cannot be read ({error.strerror}); run the same command again when it works"
        ) from error


class SweepLock:
    """Held by the one driver of a sweep; the kernel lets go of it when the process dies, however it dies."""

    def __init__(self, folder: SweepFolder) -> None:
        self._path = folder.root / "lock"
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            SurroundingsError: if another driver holds it; names its host and process.
        """
        file = self._path.open("a+", encoding="utf-8")
        if not _locked(file):
            holder = _wait_for_holder(file)
            file.close()
            raise SurroundingsError(
                f"another prolu-tune runs this sweep: process {holder.get('pid', '?')} on {holder.get('host', '?')}; "
                "wait for it or stop it, then run the same command again"
            )
        file.seek(0)
        file.truncate()
        json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        file.flush()
        self._file = file

    def release(self) -> None:
        """Lets go of the lock; the file stays."""
        if self._file is not None:
            self._file.close()
            self._file = None


def alone_in_folder(run: Callable[P, T]) -> Callable[P, T]:
    """Returns the function, carried out by one process at a time for each `folder` it is given; the folder is made.

    A worker may outlive its killed driver by some seconds, and would write into the files of the one that comes after.

    Raises:
        SurroundingsError: if another process does not leave the folder.
    """

    @functools.wraps(run)
    def alone(*arguments: P.args, **options: P.kwargs) -> T:
        folder = options["folder"]
        assert isinstance(folder, Path)
        make_folder(folder)
        with (folder / "lease").open("a", encoding="utf-8") as lease:
            deadline = time.monotonic() + LEASE_WAIT_S
            while not _locked(lease):
                if time.monotonic() > deadline:
                    raise SurroundingsError(
                        f"another process has been working in {folder} for {LEASE_WAIT_S:g} s; "
                        "stop it, then run the same command again"
                    )
                time.sleep(LEASE_LOOK_S)
            return run(*arguments, **options)

    return alone


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_holder(file: IO[str]) -> dict[str, Any]:
    """Returns who holds the lock; one that has just taken it has not written its name yet, and an older name stands there."""
    deadline = time.monotonic() + HOLDER_S
    while True:
        holder = _read_holder(file)
        here = holder.get("host") == socket.gethostname()
        if (holder and not (here and not psutil.pid_exists(int(holder["pid"])))) or time.monotonic() > deadline:
            return holder
        time.sleep(0.02)


def _read_holder(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        found = dict(json.load(file))
        return found if isinstance(found.get("pid"), int) else {}
    except (TypeError, ValueError):
        return {}
