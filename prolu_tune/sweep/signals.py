"""How a driver's process ends before its sweep: Ctrl-C and SIGTERM save and leave, a lost Ray starts the command again.

The first signal lets running trials save and leave, the second leaves at once, and so does a grace that runs out:
results and checkpoints are on disk at any moment.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn

from prolu_tune.errors import SurroundingsError
from prolu_tune.screen.screen import Screen
from prolu_tune.sweep.driver import SweepDriver
from prolu_tune.sweep.local_ray import MARK, end_children

GRACE_S = 7.0
"""How long trials may take to save before the driver leaves without them; their last checkpoints stand."""
RESTARTS = "PROLU_TUNE_RESTARTS"
"""Environment variable: how often Ray's processes died in a row without any progress in between."""
MAX_RESTARTS = 5
SCREEN_S = 1.0


class StopSignals:
    """Handles both signals while a sweep runs, in the main thread only; restores the old handlers afterwards."""

    def __init__(self, driver: SweepDriver) -> None:
        self._driver = driver
        self._old: dict[int, Any] = {}
        self._deadline: threading.Timer | None = None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self._deadline is not None:
            self._deadline.cancel()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Ray's handler in C++, where it came first, has set an alarm that would abort this process in 3 s.
        signal.alarm(0)
        if self._deadline is not None:
            leave(self._driver.screen, 130)
        self._deadline = threading.Timer(GRACE_S, leave, (self._driver.screen, 130))
        self._deadline.daemon = True
        self._deadline.start()
        # Not from here: the thread that was interrupted may hold the screen's lock.
        threading.Thread(target=self._stop, daemon=True).start()

    def _stop(self) -> None:
        self._driver.request_stop()
        saving = len(self._driver.running)
        self._driver.screen.note(f"stopping, saving {saving} trials (again to stop at once)")


class SignalledError(Exception):
    """SIGTERM came while Ray started; the handler of this process has had it."""


@contextlib.contextmanager
def keep_handler() -> Iterator[None]:
    """Keeps this process's SIGTERM handler over a start of Ray, which puts two of its own before it: one exits, one aborts.

    Raises:
        SignalledError: if the signal came meanwhile.
    """
    ours = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(ours):
        yield
        return
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        ours(signal.SIGTERM, None)
        raise SignalledError from None
    finally:
        signal.signal(signal.SIGTERM, ours)


def leave(screen: Screen, exit_code: int) -> NoReturn:
    """Ends this process and the Ray processes it started, whatever its threads are at."""
    _give_terminal_back(screen)
    end_children()
    os._exit(exit_code)


def start_again(driver: SweepDriver, lost: str) -> None:
    """Answers the death of one of Ray's own processes, which no sweep survives in its own process.

    The same command takes this process's place, as if the driver had been killed and started again; where the driver
    does not belong to a command, or this happens over and over, the process ends with exit code 3.
    """
    if driver.stopping:
        leave(driver.screen, 3 if driver.failure else 130)
    times = 1 if driver.moved else int(os.environ.get(RESTARTS, "0")) + 1
    if driver.restart is None or times > MAX_RESTARTS:
        driver.screen.note(f"Ray's process {lost} died; the same command goes on from the last checkpoints")
        leave(driver.screen, SurroundingsError.exit_code)
    driver.screen.note(f"Ray's process {lost} died; Ray is started again, trials go on from their last checkpoints")
    _give_terminal_back(driver.screen)
    os.environ.pop(MARK, None)
    os.environ[RESTARTS] = str(times)
    end_children()
    driver.restart()


def _give_terminal_back(screen: Screen) -> None:
    """Not waiting for long: a thread that will never go on may hold the screen's lock."""
    stopper = threading.Thread(target=screen.stop, daemon=True)
    stopper.start()
    stopper.join(SCREEN_S)
