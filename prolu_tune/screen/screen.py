"""What a person sees while a sweep runs, on standard error: one live screen, or plain lines off a terminal.

The driver calls a `Screen` from its own thread; nothing here knows of Ray, MLflow or torch.
"""

import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO, final

from prolu_tune.results.records import Record
from prolu_tune.screen.progress import SweepProgress
from prolu_tune.screen.words import duration, number, signed, trial_label

HEARTBEAT_S = 60.0
PHASE_PAUSE_S = 10.0
"""Off a terminal, lines about one long piece of work are at least this far apart."""


class Screen(ABC):
    """The events of a sweep, in the order in which a driver tells them: start, trials, finish, stop."""

    @abstractmethod
    def start(
        self,
        sweep: str,
        architectures: Sequence[str],
        total: int | None,
        done: int = 0,
        l0_range: tuple[float, float] | None = None,
        records: Iterable[Record] = (),
    ) -> None:
        """Shows that the sweep begins, or goes on.

        Args:
            sweep: Its name.
            architectures: In the order in which they are to be shown.
            total: Trials in all; None where that is not known beforehand.
            done: Trials that ended in an earlier start.
            l0_range: Target range of a coverage search; None: the range seen.
            records: The trials that ended in an earlier start.
        """

    @abstractmethod
    def trial_started(self, index: int, label: str, architecture: str) -> None:
        """Shows a trial as running. Label: see `words.trial_label`."""

    @abstractmethod
    def trial_progress(self, index: int, row: Mapping[str, Any]) -> None:
        """Shows the latest row of a running trial: step, num_steps, tokens, loss, l0, tokens_per_s, those it has."""

    @abstractmethod
    def trial_ended(self, record: Record, state: str, message: str | None = None) -> None:
        """Shows what became of a trial; message: the last line of a failure and where its log is."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Shows one line that stays."""

    @abstractmethod
    def phase(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Shows what is being worked on beside the trials, such as `making chunks` 3 of 12; an empty text ends it."""

    @abstractmethod
    def finish(self, records: Sequence[Record], frontier: Iterable[int], next_commands: Sequence[str]) -> None:
        """Shows the result: the records, the trials among them that are on the frontier, and the commands that come next."""

    @abstractmethod
    def stop(self) -> None:
        """Gives the terminal back; call it however the sweep ends. Calling it again is harmless."""


class CountingScreen(Screen):
    """A screen that keeps count of what it is told; how that is shown is left to hooks, which are called without the lock.

    Args:
        clock: Seconds that only grow, by which times are told.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._progress = SweepProgress(clock)
        self._lock = threading.RLock()

    @abstractmethod
    def _began(self, done: int) -> None:
        """Shows that the sweep begins, `done` trials having ended before."""

    @abstractmethod
    def _trial_began(self, label: str) -> None:
        """Shows that a trial runs."""

    @abstractmethod
    def _trial_over(self, record: Record, state: str, message: str | None) -> None:
        """Shows what became of a trial."""

    @abstractmethod
    def _phase_moved(self, text: str, *, finished: bool) -> None:
        """Shows the line of the work at hand; text: without its count."""

    def start(
        self,
        sweep: str,
        architectures: Sequence[str],
        total: int | None,
        done: int = 0,
        l0_range: tuple[float, float] | None = None,
        records: Iterable[Record] = (),
    ) -> None:
        with self._lock:
            self._progress.start(sweep, architectures=architectures, total=total, done=done, l0_range=l0_range, records=records)
        self._began(done)

    def trial_started(self, index: int, label: str, architecture: str) -> None:
        with self._lock:
            self._progress.trial_started(index, label, architecture)
        self._trial_began(label)

    def trial_progress(self, index: int, row: Mapping[str, Any]) -> None:
        with self._lock:
            self._progress.trial_progress(index, row)

    def trial_ended(self, record: Record, state: str, message: str | None = None) -> None:
        with self._lock:
            self._progress.trial_ended(record)
        self._trial_over(record, state, message)

    def phase(self, text: str, done: int | None = None, total: int | None = None) -> None:
        with self._lock:
            self._progress.phase = phase_line(text, done, total)
        self._phase_moved(text, finished=done is not None and done == total)


def _time_of_day() -> str:
    return time.strftime("%H:%M:%S")


def make_screen(
    stream: TextIO | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    time_of_day: Callable[[], str] = _time_of_day,
) -> Screen:
    """Returns the live screen where `stream` is a terminal that can move its cursor, else the plain one.

    Args:
        stream: Standard error unless given.
        environment: TERM and NO_COLOR are read from it; the process's own unless given.
        clock: Seconds that only grow, by which times are told.
        time_of_day: What stands in front of a plain line.
    """
    target: TextIO = sys.stderr if stream is None else stream
    environment = os.environ if environment is None else environment
    if target.isatty() and environment.get("TERM", "dumb").lower() not in ("dumb", "unknown", ""):
        from prolu_tune.screen.live import LiveScreen

        return LiveScreen(target, color=not environment.get("NO_COLOR"), clock=clock)
    return PlainScreen(target, clock=clock, now=time_of_day)


@final
class PlainScreen(CountingScreen):
    """One line per event with the time in front, never wrapped, and a heartbeat a minute.

    Args:
        stream: Where lines go.
        heartbeat_s: Seconds between heartbeats.
        clock: Seconds that only grow.
        now: The time of day that stands in front of a line.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], str] = _time_of_day,
    ) -> None:
        super().__init__(clock)
        self._stream, self._heartbeat_s, self._clock, self._now = stream, heartbeat_s, clock, now
        self._stopped = threading.Event()
        self._heart: threading.Thread | None = None
        self._last_phase: tuple[str, str, float] = ("", "", -PHASE_PAUSE_S)

    def _began(self, done: int) -> None:
        with self._lock:
            progress = self._progress
            resumed = f", {done} done before" if done else ""
            amount = "trials" if progress.total is None else f"{progress.total} trials"
            self._line(f"sweep {progress.sweep}: {amount}, {len(progress.architectures)} architectures{resumed}")
            if self._heart is None:
                self._heart = threading.Thread(target=self._beat, name="screen-heartbeat", daemon=True)
                self._heart.start()

    def _trial_began(self, label: str) -> None:
        self.note(f"started {label}")

    def _trial_over(self, record: Record, state: str, message: str | None) -> None:
        self.note(f"trial {self._done()} {ended_line(record, state, message)}")

    def note(self, text: str) -> None:
        with self._lock:
            self._line(text)

    def _phase_moved(self, text: str, *, finished: bool) -> None:
        with self._lock:
            said, line, when = self._last_phase
            started, moved = text != said, self._progress.phase != line
            if text and moved and (started or finished or self._clock() - when >= PHASE_PAUSE_S):
                self._last_phase = (text, self._progress.phase, self._clock())
                self._line(self._progress.phase)

    def finish(self, records: Sequence[Record], frontier: Iterable[int], next_commands: Sequence[str]) -> None:
        with self._lock:
            chosen = frontier_records(records, frontier)
            of_total = "" if self._progress.total in (None, len(records)) else f" of {self._progress.total}"
            self._line(f"{len(records)}{of_total} trials ended, {len(chosen)} on the frontier")
            for record in chosen:
                label = trial_label(record["architecture"], record["l1_coefficient"], record["seed"])
                values = f"L0 {number(record['l0'])} CE {signed(record['ce_degradation'])}"
                self._line(f"frontier {values} {label} {record['run_id'] or ''}")
            for command in next_commands:
                self._line(f"next: {command}")
        self.stop()

    def stop(self) -> None:
        self._stopped.set()
        if self._heart is not None and self._heart is not threading.current_thread():
            self._heart.join()

    def _done(self) -> str:
        return f"{self._progress.done}" if self._progress.total is None else f"{self._progress.done}/{self._progress.total}"

    def _beat(self) -> None:
        while not self._stopped.wait(self._heartbeat_s):
            with self._lock:
                self._line(heartbeat_line(self._progress))

    def _line(self, text: str) -> None:
        # A failure's message may hold newlines; a line is one event to whoever greps the log.
        self._stream.write(f"{self._now()} {' '.join(text.split())}\n")
        self._stream.flush()


def ended_line(record: Record, state: str, message: str | None) -> str:
    """Returns what became of a trial: `done prolu_ste+l1 c=3.2e-4 L0 24.8 CE +0.11`, or the state and its reason."""
    label = trial_label(record["architecture"], record["l1_coefficient"], record["seed"] or None)
    reached = f" L0 {number(record['l0'])}" if record["l0"] is not None else ""
    if state == "finished":
        return f"done {label}{reached} CE {signed(record['ce_degradation'])}"
    return f"{state} {label}{reached}{f': {message}' if message else ''}"


def phase_line(text: str, done: int | None, total: int | None) -> str:
    """Returns the text with its count, such as `making chunks 3 of 12`."""
    if not text or done is None:
        return text
    return f"{text} {done}" if total is None else f"{text} {done} of {total}"


def heartbeat_line(progress: SweepProgress) -> str:
    """Returns that the sweep is alive: counts, what runs and how far, time left."""
    amount = f"{progress.done}" if progress.total is None else f"{progress.done}/{progress.total}"
    parts = [f"{amount} done", f"{len(progress.running)} running"]
    parts += [f"{trial.label} {trial.share:.0%}" for trial in progress.running.values()]
    if progress.phase:
        parts.append(progress.phase)
    if progress.time_left_s is not None:
        parts.append(f"about {duration(progress.time_left_s)} left")
    return ", ".join(parts)


def frontier_records(records: Sequence[Record], frontier: Iterable[int]) -> list[Record]:
    """Returns the records of these trials by ascending L0."""
    chosen = set(frontier)
    return sorted((r for r in records if r["trial"] in chosen), key=lambda r: (r["l0"] or 0.0, r["trial"]))
