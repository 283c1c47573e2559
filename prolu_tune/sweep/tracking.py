"""Writes a sweep to MLflow, from the driver only and from a thread of its own, so that a slow server stops nothing."""

import queue
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from prolu_tune.durable import DamagedLineError
from prolu_tune.errors import SurroundingsError
from prolu_tune.sweep.mlflow_writer import MlflowWriter

RETRY_S = (1.0, 2.0, 5.0)
"""Pauses between attempts while the server is away; the last one repeats."""
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "PERMISSION_DENIED", "INVALID_STATE")
"""MLflow's codes for what it understood and will not do, however often it is asked."""
_PASSWORD = re.compile(r"://[^/\s]*@")


class Tracker:
    """Runs an `MlflowWriter` in a thread: calls return at once, are carried out in order, and repeated until they work."""

    def __init__(self, make_writer: Callable[[], MlflowWriter], *, note: Callable[[str], None]) -> None:
        self._make_writer = make_writer
        self._note = note
        self._calls: queue.Queue[Callable[[MlflowWriter], None] | None] = queue.Queue()
        self._dirty: set[int] = set()
        self._error: BaseException | None = None
        self._give_up = threading.Event()
        self.writer: MlflowWriter | None = None
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def call(self, action: Callable[[MlflowWriter], None]) -> None:
        """Queues a call."""
        self._calls.put(action)

    def log_rows(self, index: int, metrics_file: Path) -> None:
        """Queues carrying over a trial's new rows, unless that waits already."""
        if index in self._dirty:
            return
        self._dirty.add(index)

        def action(writer: MlflowWriter) -> None:
            self._dirty.discard(index)
            writer.log_rows(index, metrics_file)

        self.call(action)

    def close(self, *, timeout_s: float) -> None:
        """Waits until everything queued is in MLflow.

        Raises:
            SurroundingsError: if that takes longer than `timeout_s`; what is missing waits on disk.
        """
        self._calls.put(None)
        if self._error is not None:
            self._note(f"waiting {timeout_s:.0f} s for MLflow at most")
        self._thread.join(timeout_s)
        if self._thread.is_alive() or self._error is not None:
            self._give_up.set()
            raise SurroundingsError(
                f"the tracking server did not take everything ({_first_line(self._error) if self._error else 'no answer'}); "
                "nothing is lost: run the same command again to complete it"
            )

    def _run(self) -> None:
        while (action := self._calls.get()) is not None:
            self._repeat(action)

    def _repeat(self, action: Callable[[MlflowWriter], None]) -> None:
        for attempt in range(10**9):
            if self._give_up.is_set():
                return
            try:
                if self.writer is None:
                    self.writer = self._make_writer()
                action(self.writer)
            except Exception as error:  # a server, a proxy, a database driver: each has errors of its own
                self._error = error
                if not _may_pass(error):
                    self._note(f"MLflow refuses a value ({_first_line(error)})")
                    return
                if attempt == 0:
                    self._note(f"MLflow does not take values ({_first_line(error)}); training goes on, values wait on disk")
                # The call may have been carried out and only its answer lost: what MLflow holds is found anew.
                self.writer = None
                time.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
                continue
            if attempt:
                self._note("MLflow takes values again")
                self._error = None
            return


def _may_pass(error: Exception) -> bool:
    """Whether the same call may work later: not if it is our bug, or the server understood and refused it."""
    if isinstance(error, LookupError | TypeError | AttributeError | AssertionError | DamagedLineError):
        return False
    return getattr(error, "error_code", None) not in REFUSALS


def _first_line(error: BaseException) -> str:
    text = _PASSWORD.sub("://", str(error).strip())
    return text.splitlines()[0][:200] if text else type(error).__name__
