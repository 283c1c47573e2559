"""What a sweep is in MLflow: a run for the sweep and one for each trial, completed after any crash instead of made again.

Values wait on disk, not in memory: a trial's rows are appended to its `metrics.jsonl` by the trial, and this module
carries over what MLflow does not have yet. Runs are found again by tag; a row logged twice is one row in MLflow,
because its timestamp is derived from the run's start and the step. So a crash between any two calls is harmless.
"""

import json
import math
import os
import shutil
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from prolu_tune.config.trial import TrialConfig
from prolu_tune.durable import sync_folder, unsealed
from prolu_tune.results.quiet import quiet_mlflow
from prolu_tune.screen.words import trial_label
from prolu_tune.sweep.database import make_database
from prolu_tune.sweep.study import TrialResult

ROWS_PER_BATCH = 1000
"""MLflow's limit of metrics in one call."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""MLflow's client would repeat a call that made a run and lost the answer; ours look first."""
TERMINATED = {"finished": "FINISHED", "stopped": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}


@dataclass
class _TrialRun:
    run_id: str
    start_ms: int
    state: str
    bytes_logged: int = 0
    has_params: bool = False
    """Whether this writer has noted the parameters; of a run that it found it does not know."""


@dataclass
class TrackedSweep:
    """What MLflow holds of a sweep when the driver starts."""

    parent_id: str
    start_ms: int
    starts: int = 0
    """How often the sweep was started; the step of the parent run's metrics, so that each has one row."""
    children: dict[int, _TrialRun] = field(default_factory=dict)


class MlflowWriter:
    """The calls that put a sweep into MLflow; each may be repeated after a failure."""

    def __init__(self, uri: str, *, experiment: str, artifacts: Path | None, sweep: str) -> None:
        quiet_mlflow()
        for key, value in PATIENCE.items():
            os.environ.setdefault(key, value)
        from mlflow import MlflowClient

        make_database(uri)
        self._client = MlflowClient(tracking_uri=uri)
        self._sweep = sweep
        self._artifacts = artifacts
        self._experiment_id = self._find_experiment(experiment, artifacts)
        self.tracked = self._find_sweep()

    def _find_experiment(self, name: str, artifacts: Path | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        return self._client.create_experiment(name, artifact_location=None if artifacts is None else artifacts.as_uri())

    def _find_sweep(self) -> TrackedSweep:
        runs = self._without_doubles(self._search(f"tags.`prolu.sweep` = '{self._sweep}'"))
        parents = [run for run in runs if run.data.tags.get("prolu.kind") == "sweep"]
        if not parents:
            tags = {"prolu.kind": "sweep", "prolu.sweep": self._sweep, "prolu.schema": "1"}
            parents = [self._client.create_run(self._experiment_id, run_name=self._sweep, tags=tags)]
        parent = parents[0]
        tracked = TrackedSweep(parent.info.run_id, parent.info.start_time, int(parent.data.tags.get("prolu.starts", "0")))
        for run in runs:
            if run.data.tags.get("prolu.kind") == "trial":
                tags = run.data.tags
                if tags.get("mlflow.parentRunId") != tracked.parent_id:
                    self._client.set_tag(run.info.run_id, "mlflow.parentRunId", tracked.parent_id)
                known = _TrialRun(run.info.run_id, run.info.start_time, tags.get("prolu.state", "running"))
                tracked.children[int(tags["prolu.trial"])] = known
        return tracked

    def _without_doubles(self, runs: Iterable[Any], *, ours: Container[str] = ()) -> list[Any]:
        """Returns one run for each trial and one for the sweep, and deletes the others.

        There are others when the server made a run after its client had given up on the call and made one more.
        """

        def emptier(run: Any) -> tuple[bool, bool, int]:
            """Orders those first that were written to: what an empty one lacks would not be written again."""
            tags = run.data.tags
            return (
                run.info.run_id not in ours,
                tags.get("prolu.state", "running") == "running",
                -int(tags.get("prolu.starts", "0")),
            )

        kept: dict[tuple[str | None, str | None], Any] = {}
        for run in sorted(runs, key=emptier):
            key = (run.data.tags.get("prolu.kind"), run.data.tags.get("prolu.trial"))
            if kept.setdefault(key, run) is not run:
                self._client.delete_run(run.info.run_id)
        return list(kept.values())

    def _search(self, filter_string: str) -> list[Any]:
        runs, token = [], None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], filter_string, max_results=1000, page_token=token, order_by=["attributes.start_time ASC"]
            )
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def start_sweep(self, space: dict[str, Any], num_trials: int | None) -> None:
        """Notes the space on the parent run."""
        parent = self.tracked.parent_id
        self.tracked.starts += 1
        self._client.set_tag(parent, "prolu.starts", str(self.tracked.starts))
        self._client.set_tag(parent, "prolu.space", json.dumps(space)[:4900])
        if num_trials is not None:
            self._client.set_tag(parent, "prolu.num_trials", str(num_trials))
        self._client.log_dict(parent, space, "space.json")
        self._client.update_run(parent, status="RUNNING")

    def start_trial(self, index: int, config: TrialConfig) -> None:
        """Makes the child run of a trial, or takes up the one that exists."""
        if index in self.tracked.children:
            self._set_state(index, "running", None)
            self._client.update_run(self.tracked.children[index].run_id, status="RUNNING")
            return
        tags = {
            "mlflow.parentRunId": self.tracked.parent_id,
            "prolu.kind": "trial",
            "prolu.sweep": self._sweep,
            "prolu.trial": str(index),
            "prolu.architecture": config.sae.architecture,
            "prolu.state": "running",
        }
        run = self._client.create_run(self._experiment_id, run_name=config_label(config), tags=tags)
        self.tracked.children[index] = _TrialRun(run.info.run_id, run.info.start_time, "running")
        self._log_params(self.tracked.children[index], config)

    def _log_params(self, run: _TrialRun, config: TrialConfig) -> None:
        from mlflow.entities import Param

        params = [Param(key, str(value)) for key, value in flatten(config.model_dump(mode="json")).items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(run.run_id, params=params[start : start + 100])
        run.has_params = True

    def log_rows(self, index: int, metrics_file: Path) -> None:
        """Logs the rows of a trial's file that were not logged yet."""
        run = self.tracked.children[index]
        if not metrics_file.exists():
            return
        size = metrics_file.stat().st_size
        if size < run.bytes_logged:
            run.bytes_logged = 0
        with metrics_file.open("rb") as lines:
            lines.seek(run.bytes_logged)
            data = lines.read()
        whole = data[: data.rfind(b"\n") + 1]
        rows = [unsealed(line) for line in whole.splitlines(keepends=True)]
        values = [(f"train/{key}", value, row["step"]) for row in rows for key, value in row.items() if key != "step"]
        self._log_metrics(run, values)
        run.bytes_logged += len(whole)

    def _log_metrics(self, run: _TrialRun, metrics: Sequence[tuple[str, float | None, int]]) -> None:
        from mlflow.entities import Metric

        entities = [
            Metric(key, math.nan if value is None else float(value), run.start_ms + step, step) for key, value, step in metrics
        ]
        for start in range(0, len(entities), ROWS_PER_BATCH):
            self._client.log_batch(run.run_id, metrics=entities[start : start + ROWS_PER_BATCH])

    def has_ended(self, index: int, result: TrialResult) -> bool:
        """Returns whether the trial's run is complete."""
        return index in self.tracked.children and self.tracked.children[index].state == result.outcome

    def end_trial(self, index: int, config: TrialConfig, result: TrialResult, trial_folder: Path) -> None:
        """Completes a trial's run: rows, final metrics, SAE folder, state."""
        if index not in self.tracked.children:
            self.start_trial(index, config)
        run = self.tracked.children[index]
        if run.state == result.outcome:
            return
        if not run.has_params:
            # A driver killed between making a run and noting its parameters left none; the same value again is allowed.
            self._log_params(run, config)
        self.log_rows(index, trial_folder / "metrics.jsonl")
        step = int(result.record.get("steps") or 0)
        self._log_metrics(run, [(key, value, step) for key, value in result.record.items() if value is not None])
        if result.checkpoint is not None:
            self._log_folder(run.run_id, Path(result.checkpoint), "sae")
            self._client.set_tag(run.run_id, "prolu.checkpoint", result.checkpoint)
        for name, text in (("prolu.numerics", result.numerics), ("prolu.notes", result.notes)):
            if text is not None:
                self._client.set_tag(run.run_id, name, text[:4900])
        if result.outcome == "failed":
            self._client.set_tag(run.run_id, "prolu.log", str(trial_folder / "error.txt"))
        self._client.set_terminated(run.run_id, status=TERMINATED[result.outcome])
        self._set_state(index, result.outcome, result.message)

    def _log_folder(self, run_id: str, folder: Path, name: str) -> None:
        if not folder.is_dir():  # MLflow's client would log nothing and say nothing
            raise LookupError(f"{folder} is gone")
        uri = urlparse(self._client.get_run(run_id).info.artifact_uri)
        if uri.scheme not in ("", "file"):
            self._client.log_artifacts(run_id, str(folder), name)
            return
        target = Path(unquote(uri.path)) / name
        target.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            _link_or_copy(file, target / file.name)
        # All the way up: who made one of these may have been killed before syncing.
        for made in (target, *target.parents):
            sync_folder(made)
            if self._artifacts is None or made == self._artifacts.parent:
                return

    def _set_state(self, index: int, state: str, message: str | None) -> None:
        run = self.tracked.children[index]
        if message is not None:
            self._client.set_tag(run.run_id, "prolu.message", message[:4900])
        self._client.set_tag(run.run_id, "prolu.state", state)
        run.state = state

    def mark_frontier(self, on_frontier: set[int]) -> None:
        """Gives the tag `prolu.pareto` to these trials and takes it from all others."""
        ours = {self.tracked.parent_id, *(run.run_id for run in self.tracked.children.values())}
        found = self._without_doubles(self._search(f"tags.`prolu.sweep` = '{self._sweep}'"), ours=ours)
        tagged = {run.info.run_id for run in found if run.data.tags.get("prolu.pareto") == "true"}
        for index, run in self.tracked.children.items():
            if index in on_frontier and run.run_id not in tagged:
                self._client.set_tag(run.run_id, "prolu.pareto", "true")
            elif index not in on_frontier and run.run_id in tagged:
                self._client.delete_tag(run.run_id, "prolu.pareto")

    def end_sweep(self, status: str, metrics: dict[str, float]) -> None:
        """Ends the parent run with MLflow's status and the sweep's own metrics."""
        from mlflow.entities import Metric

        parent, step = self.tracked.parent_id, self.tracked.starts
        entities = [Metric(key, float(value), self.tracked.start_ms + step, step) for key, value in metrics.items()]
        for start in range(0, len(entities), ROWS_PER_BATCH):
            self._client.log_batch(parent, metrics=entities[start : start + ROWS_PER_BATCH])
        self._client.set_terminated(parent, status=status)

    def rename_archived(self, name: str) -> None:
        """Gives a sweep's runs another name, so that a fresh sweep can take the old one."""
        for run in self._search(f"tags.`prolu.sweep` = '{self._sweep}'"):
            self._client.set_tag(run.info.run_id, "prolu.sweep", name)
            if run.data.tags.get("prolu.kind") == "sweep":
                self._client.set_tag(run.info.run_id, "mlflow.runName", name)


def config_label(config: TrialConfig) -> str:
    """Returns a run name that tells trials apart, such as `prolu_ste+l1 c=0.32 s0`."""
    return trial_label(config.sae.architecture, config.training.l1_coefficient, config.seed)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested dictionary as one level with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        with target.open("r+b") as copy:
            os.fsync(copy.fileno())
