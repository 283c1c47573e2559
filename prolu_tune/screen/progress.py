"""How far a sweep has come, as the events of its driver tell it: what both screens draw from."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prolu_tune.results.records import Record

BEST_LIMITS: tuple[float, ...] = (10, 30, 100, 300, 1000)
"""Limits of L0 for which the best run so far is named."""


@dataclass
class RunningTrial:
    """A trial that is being trained, with its latest row of metrics."""

    label: str
    architecture: str
    row: Mapping[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Share of its steps that is done, 0 to 1."""
        steps = self.row.get("num_steps") or 0
        return min(1.0, self.row.get("step", 0) / steps) if steps else 0.0


class SweepProgress:
    """Counts, running trials and an estimate of the time left; knows nothing of screens.

    Args:
        clock: Seconds that only grow; a test gives its own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.sweep = ""
        self.architectures: list[str] = []
        self.total: int | None = None
        self.l0_range: tuple[float, float] | None = None
        self.records: list[Record] = []
        """Ended trials, in the order in which they ended."""
        self.running: dict[int, RunningTrial] = {}
        self.phase = ""
        self._done_before = 0
        self._ended_here = 0
        self._started_at = clock()
        self._first_trial_at: float | None = None

    def start(
        self,
        sweep: str,
        *,
        architectures: Sequence[str],
        total: int | None,
        done: int,
        l0_range: tuple[float, float] | None,
        records: Iterable[Record],
    ) -> None:
        """Begins, or goes on with `done` trials ended before."""
        self.sweep, self.architectures, self.total = sweep, list(architectures), total
        self.l0_range, self._done_before, self._started_at = l0_range, done, self._clock()
        self.records.extend(records)

    def trial_started(self, index: int, label: str, architecture: str) -> None:
        """Adds a running trial."""
        if self._first_trial_at is None:
            self._first_trial_at = self._clock()
        if architecture not in self.architectures:
            self.architectures.append(architecture)
        self.running[index] = RunningTrial(label, architecture)

    def trial_progress(self, index: int, row: Mapping[str, Any]) -> None:
        """Takes the latest row of a running trial; one of an unknown trial is ignored."""
        if index in self.running:
            self.running[index].row = dict(row)

    def trial_ended(self, record: Record) -> None:
        """Moves a trial from running to ended."""
        self.running.pop(record["trial"], None)
        if record["state"] != "interrupted":
            self._ended_here += 1
            self.records.append(record)

    @property
    def done(self) -> int:
        """Trials that ended, those of earlier starts included."""
        return self._done_before + self._ended_here

    @property
    def elapsed_s(self) -> float:
        """Seconds since this start of the sweep."""
        return self._clock() - self._started_at

    @property
    def time_left_s(self) -> float | None:
        """Seconds left at the pace so far, counting shares of running trials; None while nothing is known."""
        if self.total is None or self._first_trial_at is None:
            return None
        under_way = sum(trial.share for trial in self.running.values())
        worked, spent = self._ended_here + under_way, self._clock() - self._first_trial_at
        if worked < 0.1 or spent <= 0:
            return None
        return max(0.0, self.total - self.done - under_way) * spent / worked

    def finished(self, architecture: str | None = None) -> list[Record]:
        """Returns the trials trained to the end, of one architecture or of all."""
        return [
            record
            for record in self.records
            if record["state"] == "finished" and architecture in (None, record["architecture"])
        ]

    def best(self) -> list[tuple[float, Record]]:
        """Returns (limit, run of lowest degradation with L0 at or under it), a run that a lower limit names left out."""
        placed = [r for r in self.finished() if r["l0"] is not None and r["ce_degradation"] is not None]
        named: list[tuple[float, Record]] = []
        for limit in BEST_LIMITS:
            under = [record for record in placed if record["l0"] <= limit]
            if under:
                winner = min(under, key=lambda record: (record["ce_degradation"], record["l0"]))
                if not named or named[-1][1] is not winner:
                    named.append((limit, winner))
        return named
