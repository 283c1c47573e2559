"""What the driver of a sweep knows and decides; Ray's callbacks hand events in, the study has the last word.

Order of every ending: result into the study (the truth), then MLflow, then the screen.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from prolu_tune.config.trial import TrialConfig
from prolu_tune.errors import SurroundingsError
from prolu_tune.pareto import pareto_frontier
from prolu_tune.results.records import Record, new_record
from prolu_tune.screen.screen import Screen
from prolu_tune.sweep.files import SweepFolder
from prolu_tune.sweep.mlflow_writer import MlflowWriter, config_label
from prolu_tune.sweep.study import Proposal, Proposer, SweepStudy, TrialResult
from prolu_tune.sweep.tracking import Tracker

if TYPE_CHECKING:
    from prolu_tune.sweep.mirror import SweepMirror

REPORTS_PER_S = 20.0
"""What all trials together tell the driver, which takes 5 to 10 ms of its CPU for each."""


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
    capacity: int = 10**6
    """How many trials may be under way: as many as the machines hold."""
    mirror: "SweepMirror | None" = None
    """Where files are mirrored to, if the storage is a bucket."""
    accept_numerics: bool = False
    """Trials may go on from checkpoints that were made with other numerics."""
    restart: Callable[[], None] | None = None
    """Puts a new process with the same command in the place of this one, if this one belongs to a command."""
    moved: bool = False
    """Whether any trial has come further since this driver started."""
    furthest: dict[int, int] = field(default_factory=dict)
    """The last step that a running trial has told of, in this driver's time."""
    lost_at: dict[int, int] = field(default_factory=dict)
    """How far a trial had come when its process was lost the last time."""
    refused: dict[int, str] = field(default_factory=dict)
    """Trials that cannot go on here, by what has to be said about them."""
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
            if len(self.running) >= self.capacity:
                return "wait"
            if self._waiting:
                proposal = self._waiting.popleft()
            else:
                try:
                    answer = self.proposer.propose(self.study.optuna_study)
                except SurroundingsError as error:
                    self.stop_for(str(error))
                    return "done"
                if answer == "wait" and self.refused and not self.running:
                    return "done"
                if not isinstance(answer, Proposal):
                    return answer
                proposal = answer
            index, config = proposal.index, proposal.config
            self.configs[index] = config
            self.running.add(index)
        self.tracker.call(lambda writer: writer.start_trial(index, config))
        self.screen.trial_started(index, config_label(config), config.sae.architecture)
        return proposal

    @property
    def report_every_s(self) -> float:
        """How often a trial should tell of itself: once a second, less often where very many do."""
        return max(1.0, self.capacity / REPORTS_PER_S)

    def progress(self, index: int, row: dict[str, Any]) -> None:
        """Takes a running trial's newest row."""
        self.moved = True
        self.furthest[index] = max(int(row["step"]), self.furthest.get(index, 0))
        if self.mirror:
            self._log_mirrored_rows(index)
        else:
            self.tracker.log_rows(index, self.folder.trial(index) / "metrics.jsonl")
        self.screen.trial_progress(index, row)

    def ended(self, index: int, result: TrialResult) -> None:
        """Takes a trial's result."""
        self.moved = True
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
        if self.mirror and result.checkpoint:
            # The path in the study is one of the trial's node, or of another head; the files are brought here first.
            result = replace(result, checkpoint=str(folder / "sae"))

        def action(writer: MlflowWriter) -> None:
            if self.mirror and not writer.has_ended(index, result):
                self.mirror.fetch_trial(index, config)
            writer.end_trial(index, config, result, folder)

        self.tracker.call(action)

    def _log_mirrored_rows(self, index: int) -> None:
        """Carries over a running trial's rows as often as the mirror brings them."""
        mirror, config, rows = self.mirror, self.configs[index], self.folder.trial(index) / "metrics.jsonl"
        if mirror and mirror.rows_due(index):

            def action(writer: MlflowWriter) -> None:
                if mirror.fetch_rows(index, config):
                    writer.log_rows(index, rows)

            self.tracker.call(action)

    def left(self, index: int) -> None:
        """Takes note that a trial saved and left without a result; the next driver goes on with it."""
        with self._lock:
            self.running.discard(index)

    def lost(self, index: int) -> bool:
        """Takes note that a trial's process died; returns whether the trial has come further than the last time."""
        before, now = self.lost_at.get(index, -1), self.furthest.get(index, 0)
        self.lost_at[index] = max(before, now)
        return now > before

    def refuse(self, index: int, reason: str) -> None:
        """Takes note that a trial cannot go on here; the others do, and the sweep ends as one that is not complete."""
        self.refused[index] = reason
        self.screen.note(f"trial {index} does not go on: {reason}")
        self.left(index)

    def stop_for(self, reason: str) -> None:
        """Ends the sweep for a reason outside it; running trials save and leave."""
        if self.failure is None:
            self.failure = reason
            self.screen.note(reason)
        self.request_stop()

    def request_stop(self) -> None:
        """Lets running trials save and leave, and starts no others."""
        self.stopping = True

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
