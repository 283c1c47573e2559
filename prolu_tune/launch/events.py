"""What a sweep on a cluster tells the screen of the machine it was started from: one line of JSON per event.

On the head an `EventScreen` stands where a terminal would be; what it prints reaches the other machine as the job's log,
where `EventPlayer` plays it on a real screen. Times are those of the events, so that a player who comes late shows the
times of the sweep, not its own.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO, final

from prolu_tune.results.records import Record
from prolu_tune.screen.screen import Screen

MARK = "@prolu "
"""Begins the lines that are events; the rest of a job's log is Ray's and whoever else prints there."""
PROGRESS_EVERY_S = 2.0
PROGRESS_BYTES_PER_S = 300.0
"""The rows of running trials come so seldom that they stay below this on average: a megabyte an hour."""


@final
class EventScreen(Screen):
    """A screen that writes what it is told as lines of JSON.

    Args:
        stream: The job's standard output.
        now: Seconds since 1970.
    """

    def __init__(self, stream: TextIO, *, now: Callable[[], float] = time.time) -> None:
        self._stream, self._now = stream, now
        self._lock = threading.RLock()
        self._rows: dict[int, dict[str, Any]] = {}
        self._phase: tuple[str, int | None, int | None] = ("", None, None)
        self._said_phase = self._phase
        self._next_progress = 0.0

    def start(
        self,
        sweep: str,
        architectures: Sequence[str],
        total: int | None,
        done: int = 0,
        l0_range: tuple[float, float] | None = None,
        records: Iterable[Record] = (),
    ) -> None:
        self._say(
            "start",
            sweep=sweep,
            architectures=list(architectures),
            total=total,
            done=done,
            l0_range=l0_range,
            records=list(records),
        )

    def trial_started(self, index: int, label: str, architecture: str) -> None:
        self._say("trial_started", index=index, label=label, architecture=architecture)

    def trial_progress(self, index: int, row: Mapping[str, Any]) -> None:
        with self._lock:
            self._rows[index] = dict(row)
            self._progress()

    def trial_ended(self, record: Record, state: str, message: str | None = None) -> None:
        with self._lock:
            self._rows.pop(record["trial"], None)
            self._say("trial_ended", record=record, state=state, message=message)

    def note(self, text: str) -> None:
        self._say("note", text=text)

    def phase(self, text: str, done: int | None = None, total: int | None = None) -> None:
        with self._lock:
            self._phase = (text, done, total)
            if text != self._said_phase[0]:
                self._say_phase()
            else:
                self._progress()

    def finish(self, records: Sequence[Record], frontier: Iterable[int], next_commands: Sequence[str]) -> None:
        self._say("finish", records=list(records), frontier=list(frontier), next_commands=list(next_commands))

    def stop(self) -> None:
        """Nothing to give back."""

    def end(self, exit_code: int, message: str | None) -> None:
        """Writes the last line of a job: how it ended."""
        self._say("end", exit_code=exit_code, message=message)

    def _progress(self) -> None:
        """Writes what has changed in running trials and in the work beside them, if that is due."""
        if self._now() < self._next_progress:
            return
        written = 0
        if self._phase != self._said_phase:
            written += self._say_phase()
        if self._rows:
            written += self._say("progress", rows=list(self._rows.items()))
            self._rows.clear()
        self._next_progress = self._now() + max(PROGRESS_EVERY_S, written / PROGRESS_BYTES_PER_S)

    def _say_phase(self) -> int:
        self._said_phase = self._phase
        text, done, total = self._phase
        return self._say("phase", text=text, done=done, total=total)

    def _say(self, event: str, **fields: Any) -> int:
        """Writes one event and returns the number of its characters."""
        with self._lock:
            line = MARK + json.dumps(_finite({"at": round(self._now(), 3), "event": event} | fields), allow_nan=False) + "\n"
            self._stream.write(line)
            self._stream.flush()
            return len(line)


class EventClock:
    """The time of the events being played, moving on by itself between them."""

    def __init__(self) -> None:
        self._at, self._since = time.time(), time.monotonic()

    def set(self, at: float) -> None:
        """Takes the time of an event."""
        self._at, self._since = at, time.monotonic()

    def seconds(self) -> float:
        """Returns the time, in seconds since 1970."""
        return self._at + time.monotonic() - self._since

    def time_of_day(self) -> str:
        """Returns it as HH:MM:SS of this machine's zone."""
        return time.strftime("%H:%M:%S", time.localtime(self.seconds()))


class EventPlayer:
    """Plays the events of a job's log on a screen.

    Args:
        screen: Where the sweep is shown.
        clock: The clock that the screen goes by.
        flag: What commands for a person here need so that they mean the cluster, such as ` --cluster cluster/gpu.yaml`.
    """

    def __init__(self, screen: Screen, clock: EventClock, flag: str = "") -> None:
        self._screen, self._clock, self._flag = screen, clock, flag
        self.records: list[Record] = []
        """The records of all ended trials, once the sweep has told its result."""
        self.exit_code: int | None = None
        """The job's own exit code, once it has told."""
        self.message: str | None = None
        """Its last word, where it failed."""

    def play(self, line: str) -> bool:
        """Returns whether a line of the log was an event; shows it if so. A torn or strange line is none."""
        if not line.startswith(MARK):
            return False
        try:
            fields = json.loads(line.removeprefix(MARK))
            event, at = fields.pop("event"), float(fields.pop("at"))
            handler = getattr(self, f"_on_{event}")
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        self._clock.set(at)
        handler(**fields)
        return True

    def _on_start(self, l0_range: list[float] | None, **fields: Any) -> None:
        self._screen.start(l0_range=(l0_range[0], l0_range[1]) if l0_range else None, **fields)

    def _on_trial_started(self, **fields: Any) -> None:
        self._screen.trial_started(**fields)

    def _on_progress(self, rows: list[tuple[int, dict[str, Any]]]) -> None:
        for index, row in rows:
            self._screen.trial_progress(index, row)

    def _on_trial_ended(self, **fields: Any) -> None:
        self._screen.trial_ended(**fields)

    def _on_note(self, text: str) -> None:
        self._screen.note(text)

    def _on_phase(self, **fields: Any) -> None:
        self._screen.phase(**fields)

    def _on_finish(self, records: list[Record], frontier: list[int], next_commands: list[str]) -> None:
        self.records = records
        commands = [command + self._flag if command.startswith("prolu-tune ") else command for command in next_commands]
        self._screen.finish(records, frontier, commands)

    def _on_end(self, exit_code: int, message: str | None) -> None:
        self.exit_code, self.message = exit_code, message


def _finite(value: Any) -> Any:
    """Returns data in which NaN and infinity are None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    return [_finite(child) for child in value] if isinstance(value, list | tuple) else value
