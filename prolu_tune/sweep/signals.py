"""Ctrl-C and SIGTERM: the first lets running trials save and leave, the second leaves at once."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import psutil

from prolu_tune.sweep.driver import SweepDriver

GRACE_S = 8.0
"""How long trials may take to save before the driver leaves without them; their last checkpoints stand."""


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
        if self._driver.stopping:
            self._leave()
        self._driver.screen.note(f"stopping, saving {len(self._driver.running)} trials (again to stop at once)")
        self._driver.request_stop()
        self._deadline = threading.Timer(GRACE_S, self._leave)
        self._deadline.daemon = True
        self._deadline.start()

    def _leave(self) -> None:
        """Ends this process and the Ray processes it started; results and checkpoints are on disk."""
        self._driver.screen.stop()
        for child in psutil.Process().children(recursive=True):
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        os._exit(130)
