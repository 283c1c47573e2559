"""The study's journal: Optuna's records, one sealed line each, appended by the sweep's one driver.

Optuna 5.0's own file backend drops a record that a crash cut off silently, appends to the fragment, and fails for ever
after with `JSONDecodeError`; a flipped digit it does not notice at all. Here every record carries a checksum, the file
is brought back to its last whole record when it is opened, and an append that failed leaves nothing behind.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from prolu_tune.durable import DamagedLineError, extend_file, replace_file, sealed, unsealed
from prolu_tune.errors import SurroundingsError
from prolu_tune.sweep.files import surroundings_error

CREATE_STUDY = {"op_code", "worker_id", "study_name", "directions"}
"""Keys of a journal's first record."""


class SweepJournal(BaseJournalBackend):
    """A journal file for one writer, which holds the sweep's lock."""

    def __init__(self, path: Path) -> None:
        """Opens the journal, or stands for one that the first record makes.

        Raises:
            SurroundingsError: if a record before the last is damaged, which no crash of ours can do, or the disk fails.
            InputError: if the folder cannot be written.
        """
        self._path = path
        try:
            self.torn_bytes = repair_journal(path)
            data = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise surroundings_error(error, path) from error
        self._lines = data.splitlines(keepends=True)
        self._unsealed_too = _is_old(self._lines)
        self._bytes = len(data)

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        """Returns the records from a number on."""
        return [_record(line, unsealed_too=self._unsealed_too) for line in self._lines[log_number_from:]]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends records, on the disk when this returns.

        Raises:
            SurroundingsError: if the disk is full or fails; the journal holds none of them then.
            InputError: if the folder cannot be written.
        """
        lines = [sealed(log) for log in logs]
        data = b"".join(lines)
        try:
            extend_file(self._path, data, at=self._bytes)
        except OSError as error:
            raise surroundings_error(error, self._path) from error
        self._lines += lines
        self._bytes += len(data)


def repair_journal(path: Path) -> int:
    """Returns the number of bytes cut from the end of a journal; they are kept beside it as `*.torn`.

    Also removes what a killed driver may have left: a copy it had not yet renamed, and an earlier version's lock; the
    sweep's own lock excludes a second driver.

    Raises:
        SurroundingsError: if a record before the last is damaged, which no crash of ours can do.
    """
    for left in ("lock", "tmp", "torn.tmp"):
        path.with_name(f"{path.name}.{left}").unlink(missing_ok=True)
    if not path.exists():
        return 0
    data = path.read_bytes()
    whole = _length_of_whole_records(data, path)
    if whole == len(data):
        return 0
    replace_file(path.with_name(f"{path.name}.torn"), [data[whole:]])
    replace_file(path, [data[:whole]])
    return len(data) - whole


def _length_of_whole_records(data: bytes, path: Path) -> int:
    lines, offset = data.splitlines(keepends=True), 0
    unsealed_too = _is_old(lines)
    for line in lines:
        try:
            _record(line, unsealed_too=unsealed_too)
        except DamagedLineError as error:
            if offset + len(line) == len(data):
                return offset
            raise SurroundingsError(
                f"{path} is damaged at byte {offset}, before its last record: {error}; restore it from a backup, "
                "or start the sweep anew with --fresh"
            ) from None
        offset += len(line)
    return offset


def _is_old(lines: list[bytes]) -> bool:
    """Returns whether Optuna's own backend began the file: its records carry no checksum."""
    try:
        return bool(lines) and _plain(lines[0]).keys() == CREATE_STUDY
    except DamagedLineError:
        return False


def _record(line: bytes, *, unsealed_too: bool) -> dict[str, Any]:
    try:
        return unsealed(line)
    except DamagedLineError:
        if unsealed_too:
            return _plain(line)
        raise


def _plain(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DamagedLineError(f"it is not JSON ({type(error).__name__})") from error
    if not isinstance(record, dict) or "crc32" in record or not line.endswith(b"\n"):
        raise DamagedLineError("it is not a whole record")
    return record
