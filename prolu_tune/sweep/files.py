"""Where a sweep keeps its files, and how they are written: replaced whole, never in place.

STORAGE/mlflow.db, artifacts/, cache/           shared by all sweeps of a storage folder
STORAGE/sweeps/NAME/space.json, study.journal, lock
STORAGE/sweeps/NAME/trials/0007/                metrics.jsonl, checkpoints, sae/, error.txt
"""

import errno
import fcntl
import json
import os
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from prolu_tune.errors import InputError, SurroundingsError


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
    def stop_file(self) -> Path:
        """Exists while trials are asked to save and leave."""
        return self.root / "stop"

    def trial(self, index: int) -> Path:
        """Returns the folder of a trial; makes nothing."""
        return self.root / "trials" / f"{index:04d}"

    def create(self) -> None:
        """Makes the folder and checks that it can be written.

        Raises:
            SurroundingsError: if it cannot.
        """
        probe = self.root / f".write-test-{os.getpid()}"
        try:
            (self.root / "trials").mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"prolu-tune")
            probe.unlink()
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
        self.stop_file.unlink(missing_ok=True)


def surroundings_error(error: OSError, path: Path) -> SurroundingsError | InputError:
    """Returns the error a person can act on for a failed file operation under `path`."""
    if error.errno == errno.ENOSPC:
        return SurroundingsError(f"the disk that holds {path} is full; free some space, then run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return InputError(f"cannot write to {path} ({error.strerror}); choose another folder with --storage")
    return SurroundingsError(f"cannot use {path} ({error.strerror}); run the same command again when it works")


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
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(file)
            file.close()
            raise SurroundingsError(
                f"another prolu-tune runs this sweep: process {holder.get('pid', '?')} on {holder.get('host', '?')}; "
                "wait for it or stop it, then run the same command again"
            ) from None
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


def _read_holder(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        return dict(json.load(file))
    except ValueError:
        return {}
