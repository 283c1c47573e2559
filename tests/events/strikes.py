"""Strikes at every event of every operation, one forked process each, and tells what was found.

`python -m events.strikes [EVERY [OPERATION ...]]` prints a line of JSON for each strike; run it from the folder of the tests.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from events.file_layer import HOWS, WRITES_ONLY, Fault, FileEvents
from events.operations import OPERATIONS, Operation
from prolu_tune.errors import InputError, SurroundingsError

ALLOWED = (InputError, SurroundingsError, OSError)
"""What a write may raise when the disk fails; `save_sae` and rows leave an OSError to their caller, who names the trial."""


def killed(work: Callable[[], None]) -> None:
    """Does something in a process of its own, which must not come to its end alive."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "the process was not killed"


def events_of(operation: Operation, folder: Path) -> list[tuple[str, str]]:
    """Returns the events of an undisturbed write."""
    with FileEvents(folder).installed() as layer:
        operation.act(folder)
    return [(name, os.path.relpath(path, folder)) for name, path in layer.events]


def _act(operation: Operation, folder: Path, fault: Fault) -> None:
    with FileEvents(folder, fault).installed():
        operation.act(folder)


def struck(operation: Operation, folder: Path, fault: Fault) -> str:
    """Returns how an operation that was struck ended: `killed`, `done`, or the kind of error, after which it was repeated."""
    if fault.how.startswith("kill"):
        killed(lambda: _act(operation, folder, fault))
        return "killed"
    try:
        _act(operation, folder, fault)
    except ALLOWED as error:
        assert str(error).strip(), "an error without a word"
        operation.check(folder)
        operation.act(folder)  # the same process goes on when there is room
        assert operation.check(folder), "the second attempt did nothing"
        return type(error).__name__
    assert operation.check(folder), "it said nothing and did nothing"
    return "done"


def strikes(name: str, *, every: int = 1) -> Iterator[dict[str, Any]]:
    """Yields what came of each strike at an operation, or of every so many; fails at the first that lost something."""
    operation = OPERATIONS[name]
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # thousands of fsyncs; what is struck is ours, not the disk
    with tempfile.TemporaryDirectory(prefix="prolu-events-", dir=in_memory) as scratch:
        before = Path(scratch) / "before"
        before.mkdir()
        operation.prepare(before)
        trial = Path(scratch) / "trial"
        shutil.copytree(before, trial, symlinks=True)
        events = events_of(operation, trial)
        faults = [
            Fault(number, how)
            for number, (event, _) in enumerate(events)
            for how in HOWS
            if event == "write" or how not in WRITES_ONLY
        ]
        for fault in faults[::every]:
            event, path = events[fault.number]
            shutil.rmtree(trial)
            shutil.copytree(before, trial, symlinks=True)
            try:
                ended = struck(operation, trial, fault)
                found = "new" if operation.check(trial) else "old"
                operation.go_on(trial)
            except Exception as error:
                raise AssertionError(f"{name}, event {fault.number} ({event} {path}), {fault.how}: {error}") from error
            yield {"operation": name, "event": event, "path": path, "how": fault.how, "ended": ended, "found": found}


def main() -> None:
    """Strikes at every so many events of all operations, or of the one named."""
    torch.set_num_threads(1)
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    for name in sys.argv[2:] or OPERATIONS:
        for strike in strikes(name, every=every):
            print(json.dumps(strike), flush=True)


if __name__ == "__main__":
    main()
