"""What the driver of a sweep knows and decides; Ray's callbacks hand events in, the study has the last word.

Order of every ending: result into the study (the truth), then MLflow, then the screen.
"""

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from prolu_tune.config.trial import TrialConfig
from prolu_tune.errors import SurroundingsError
from prolu_tune.pareto import pareto_frontier
from prolu_tune.results.records import Record, new_record
from prolu_tune.screen.screen import Screen
from prolu_tune.sweep.files import SweepFolder
from prolu_tune.sweep.study import Proposal, Proposer, SweepStudy, TrialResult
from prolu_tune.sweep.tracking import Tracker, config_label


@dataclass
class SweepDriver:
    """One running sweep, seen from its driver process."""

    name: str
    folder: SweepFolder
    study: SweepStudy
    proposer: Proposer
    tracker: Tracker
    screen: Screen
    stopping: bool = False
    """No new trials; running ones save and leave."""
    failure: str | None = None
    """Why the surroundings made the sweep stop."""
    configs: dict[int, TrialConfig] = field(default_factory=dict)
    running: set[int] = field(default_factory=set)
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the sweep itself, for the parent run."""
    _waiting: deque[Proposal] = field(default_factory=deque)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._waiting.extend(self.study.unfinished(self.proposer))

    def next_trial(self) -> "Proposal | Literal['wait', 'done']":
        """Returns the next trial to run: first those an earlier driver left unfinished, then new ones."""
        with self._lock:
            if self.stopping:
                return "done"
            if self._waiting:
                proposal = self._waiting.popleft()
            else:
                answer = self.proposer.propose(self.study.optuna_study)
                if not isinstance(answer, Proposal):
                    return answer
                proposal = answer
            index, config = proposal.index, proposal.config
            self.configs[index] = config
            self.running.add(index)
        self.tracker.call(lambda writer: writer.start_trial(index, config))
        self.screen.trial_started(index, config_label(config), config.sae.architecture)
        return proposal

    def progress(self, index: int, row: dict[str, Any]) -> None:
        """Takes a running trial's newest row."""
        self.tracker.log_rows(index, self.folder.trial(index) / "metrics.jsonl")
        self.screen.trial_progress(index, row)

    def ended(self, index: int, result: TrialResult) -> None:
        """Takes a trial's result."""
        with self._lock:
            self.running.discard(index)
            try:
                new = self.study.finish(index, result)
            except SurroundingsError as error:
                self.stop_for(str(error))
                return
        if new:
            self.track_end(index, self.configs[index], result)
            record = make_record(index, self.configs[index], result)
            self.screen.trial_ended(record, result.outcome, result.message)

    def track_end(self, index: int, config: TrialConfig, result: TrialResult) -> None:
        """Has MLflow complete the trial's run; without effect where that is done."""
        folder = self.folder.trial(index)
        self.tracker.call(lambda writer: writer.end_trial(index, config, result, folder))

    def left(self, index: int) -> None:
        """Takes note that a trial saved and left without a result; the next driver goes on with it."""
        with self._lock:
            self.running.discard(index)

    def stop_for(self, reason: str) -> None:
        """Ends the sweep for a reason outside it; running trials save and leave."""
        if self.failure is None:
            self.failure = reason
            self.screen.note(reason)
        self.request_stop()

    def request_stop(self) -> None:
        """Lets running trials save and leave, and starts no others."""
        self.stopping = True
        self.folder.stop_file.touch()

    def count_tokens(self, tokens: dict[str, int]) -> None:
        """Adds what a node passed through its language model: of the training stream, and in all."""
        for part, number in tokens.items():
            key = f"language_model_tokens_{part}"
            self.metrics[key] = self.metrics.get(key, 0.0) + number

    def records(self) -> list[Record]:
        """Returns the records of all trials that ended, in index order."""
        writer = self.tracker.writer
        runs = {} if writer is None else {i: run.run_id for i, run in writer.tracked.children.items()}
        return sweep_records(self.study, runs)


def sweep_records(study: SweepStudy, run_ids: dict[int, str]) -> list[Record]:
    """Returns the records of a study's ended trials, in index order, with `on_frontier` filled in."""
    configs = study.configs()
    records = [make_record(i, configs[i], result, run_id=run_ids.get(i)) for i, result in study.results().items()]
    on_frontier = frontier_trials(records)
    return [record | {"on_frontier": record["trial"] in on_frontier} for record in records]


def make_record(index: int, config: TrialConfig, result: TrialResult, run_id: str | None = None) -> Record:
    """Returns the record of an ended trial."""
    return new_record(
        config, run_id=run_id, trial=index, state=result.outcome, metrics=result.record, checkpoint=result.checkpoint
    )


def frontier_trials(records: Iterable[Record]) -> set[int]:
    """Returns the indices of the finished trials on the frontier of (l0, ce_degradation)."""
    finished = [record for record in records if record["state"] == "finished"]
    points = [(record["l0"], record["ce_degradation"]) for record in finished]
    return {finished[i]["trial"] for i in pareto_frontier(points)}
