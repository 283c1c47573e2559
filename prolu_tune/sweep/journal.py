"""Repairs an Optuna journal whose last record a crash cut off.

Optuna 5.0 drops such a record silently, appends to the fragment, and fails for ever after with `JSONDecodeError`.
So the file is brought back to its last whole record before Optuna opens it, under the sweep's lock.
"""

import json
from pathlib import Path

from prolu_tune.durable import replace_file
from prolu_tune.errors import SurroundingsError


def repair_journal(path: Path) -> int:
    """Returns the number of bytes cut from the end of a journal; they are kept beside it as `*.torn`.

    Also removes the lock that a killed driver left: the sweep's own lock already excludes a second one.

    Raises:
        SurroundingsError: if a record before the last is damaged, which no crash of ours can do.
    """
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if not path.exists():
        return 0
    data = path.read_bytes()
    whole = _length_of_whole_records(data, path)
    if whole == len(data):
        return 0
    path.with_name(f"{path.name}.torn").write_bytes(data[whole:])
    replace_file(path, [data[:whole]])
    return len(data) - whole


def _length_of_whole_records(data: bytes, path: Path) -> int:
    offset = 0
    for line in data.splitlines(keepends=True):
        if not (line.endswith(b"\n") and _is_record(line)):
            if offset + len(line) == len(data):
                return offset
            raise SurroundingsError(
                f"{path} is damaged at byte {offset}, before its last record; restore it from a backup, "
                "or start the sweep anew with --fresh"
            )
        offset += len(line)
    return offset


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
