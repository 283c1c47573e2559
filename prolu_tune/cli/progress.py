"""What a verb is at while a person waits, on standard error: a bar or a spinner on a terminal, else a line now and then."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

QUIET_S = 10.0
"""Off a terminal, lines about one piece of work are at least this far apart."""
SHORT_S = 2.0
"""Off a terminal, work that follows the line before so closely is not worth one."""


class Work:
    """Shows one piece of work at a time; a context manager that leaves the terminal as it was."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._said = ("", time.monotonic())
        self._text = ""

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

            console = Console(stderr=True, highlight=False, markup=False, emoji=False)
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(24),
                TaskProgressColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=console, transient=True, redirect_stdout=False)
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def show(self, text: str, done: int = 0, total: int = 0) -> None:
        """Shows the work at hand and how much of it is done; total 0: not known."""
        if self._progress is None:
            self._say_sometimes(text, done, total)
            return
        if text != self._text:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(text, total=total or None)
            self._text = text
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=total or None)

    def say(self, text: str) -> None:
        """Shows one line that stays."""
        if self._progress is not None:
            self._progress.console.print(text, soft_wrap=True)
        else:
            print(text, file=sys.stderr)

    def close(self) -> None:
        """Takes it off the terminal; harmless when repeated."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _say_sometimes(self, text: str, done: int, total: int) -> None:
        said, when = self._said
        if time.monotonic() - when < (QUIET_S if text == said else SHORT_S):
            return
        self._said = (text, time.monotonic())
        share = f" {done / total:.0%}" if total and done else ""
        print(f"{text}{share}", file=sys.stderr, flush=True)
