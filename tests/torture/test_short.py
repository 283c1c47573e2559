"""The short form of `scripts/torture.py`: one sweep, ten SIGKILLs, also while it recovers, ends as the undisturbed one."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from torture import digest
from torture.history import KILLED, History, history

SPACE = Path(__file__).parent / "spaces" / "long.yaml"
RUNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("started", ("trial", "trial", "node", "trial", "raylet")),
    ("started again", ("trial", "trial", "trial", "all")),
    ("", ("driver",)),
)
"""What a run has said when its faults begin, and its faults. The second is the first in its second life: Ray died."""
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short, because Ray puts sockets below it."""
    made = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def _kill_ten_times(made: History) -> None:
    attempt = made.start()
    for words, faults in RUNS:
        if not words:
            assert attempt.wait(60) == -9
            attempt = made.start()
        made.wait_for(attempt, words)
        for fault in faults:
            made.strike(fault, attempt, delay=0.5 if words else 3.0)
    assert attempt.wait(60) == -9


def test_a_sweep_that_is_killed_ten_times_ends_with_the_bits_of_one_that_was_not(folder: Path) -> None:
    with history(folder / "u", SPACE, seed=0) as undisturbed:
        last = undisturbed.finish()
        assert undisturbed.complaints(last) == []
        expected = undisturbed.result(last)
    with history(folder / "k", SPACE, seed=1, cache=undisturbed.storage / "cache") as made:
        _kill_ten_times(made)
        last = made.finish()
        assert digest.differences(expected, made.result(last)) == []
        assert made.complaints(last) == []
    assert sum(fault.startswith(KILLED) for fault in made.faults) == 10, made.faults
