"""A job's log as it arrives: in torn pieces, again from its beginning after a broken connection, or ending without a word."""

import asyncio
import io
import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from prolu_tune.errors import SurroundingsError
from prolu_tune.launch.events import MARK, EventClock, EventPlayer
from prolu_tune.launch.find import Target
from prolu_tune.launch.follow import Follower, JobDiedError, _Lines, left_words
from prolu_tune.screen.screen import PlainScreen

TARGET = Target("job", address="http://10.0.0.1:8265")


def note(text: str) -> str:
    return MARK + json.dumps({"at": 1.0, "event": "note", "text": text}) + "\n"


class Log:
    """Stands where Ray's client would: gives a job's log in pieces of any length."""

    def __init__(self, text: str, size: int) -> None:
        self.text, self.size = text, size

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for start in range(0, len(self.text), self.size):
            yield self.text[start : start + self.size]


def read(text: str, *, size: int, skip: int = 0) -> tuple[str, int, list[str]]:
    out: io.StringIO = io.StringIO()
    other: deque[str] = deque(maxlen=5)
    player = EventPlayer(PlainScreen(out, now=lambda: "00:00:00"), EventClock())
    lines = _Lines(player, skip=skip, other=other)
    asyncio.run(lines.read(cast(Any, Log(text, size)), "prolu-x.1"))
    return out.getvalue(), lines.events, list(other)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_torn_pieces_are_put_together_and_other_lines_kept_aside(size: int) -> None:
    text = "Running entrypoint\n" + note("one") + "a warning\n" + note("two")
    assert read(text, size=size) == ("00:00:00 one\n00:00:00 two\n", 2, ["Running entrypoint", "a warning"])


def test_after_a_broken_connection_nothing_is_shown_twice() -> None:
    text = note("one") + note("two") + note("three")
    assert read(text, size=50, skip=2)[0] == "00:00:00 three\n"


class Status(str):
    """A job's state as Ray's enumeration has it."""

    __slots__ = ()

    def is_terminal(self) -> bool:
        return self in ("STOPPED", "FAILED", "SUCCEEDED")


def test_a_driver_that_ends_without_a_word_is_told_with_its_last_lines() -> None:
    screen = PlainScreen(io.StringIO())
    follower = Follower(TARGET, "prolu-exp3.2", EventPlayer(screen, EventClock()), screen)
    assert follower._silent_end(cast(Any, Status("RUNNING")), None) is None
    assert follower._silent_end(cast(Any, Status("STOPPED")), None) == 130
    with pytest.raises(JobDiedError, match=r"ended without a word \(FAILED\); its last lines:\nMemoryError") as died:
        follower._silent_end(cast(Any, Status("FAILED")), "MemoryError")
    assert isinstance(died.value, SurroundingsError) and died.value.exit_code == 3


def test_who_leaves_is_told_how_to_come_back_and_how_to_stop() -> None:
    assert left_words(TARGET, "exp3").splitlines()[1:] == [
        "  watch again: the same command",
        "  save and stop it: prolu-tune stop exp3 --address http://10.0.0.1:8265",
    ]
