"""An MLflow server in memory, with the faults of a server; `test_server.py` holds it against the real SQLite store."""

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST

_CONDITION = re.compile(r"tags\.`([^`]+)` = '([^']*)'")


@dataclass
class StoredRun:
    """A run as the server keeps it."""

    run_id: str
    name: str
    start_ms: int
    artifact_uri: str
    status: str = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    rows: dict[tuple[str, float, int, int, bool], None] = field(default_factory=dict)
    """(key, value, timestamp, step, not a number), each once, as the SQL store's primary key has it."""
    artifacts: dict[str, bytes] = field(default_factory=dict)
    deleted: bool = False

    def view(self) -> Any:
        """Returns what a client is given."""
        info = SimpleNamespace(
            run_id=self.run_id,
            run_name=self.name,
            start_time=self.start_ms,
            artifact_uri=self.artifact_uri,
            status=self.status,
        )
        return SimpleNamespace(info=info, data=SimpleNamespace(tags=dict(self.tags), params=dict(self.params)))


class Page(list):
    """A page of runs."""

    token: str | None = None


class Server:
    """What the server holds. Calls are atomic; time and faults are the client's affair."""

    def __init__(self, artifacts: Path, now_ms: Callable[[], int]) -> None:
        self._artifacts = artifacts
        self.now_ms = now_ms
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, StoredRun] = {}

    def get_experiment_by_name(self, name: str) -> Any:
        found = self.experiments.get(name)
        return None if found is None else SimpleNamespace(experiment_id=found)

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
        if name in self.experiments:
            raise MlflowException(f"Experiment(name={name}) already exists.", error_code=RESOURCE_ALREADY_EXISTS)
        self.experiments[name] = str(len(self.experiments) + 1)
        return self.experiments[name]

    def create_run(
        self, experiment_id: str, start_time: int | None = None, tags: dict[str, str] | None = None, run_name: str | None = None
    ) -> Any:
        run_id = f"{len(self.runs) + 1:032x}"
        place = (self._artifacts / run_id / "artifacts").as_uri()
        run = StoredRun(run_id, run_name or "run", start_time or self.now_ms(), place, tags=dict(tags or {}))
        self.runs[run_id] = run
        return run.view()

    def _run(self, run_id: str) -> StoredRun:
        if run_id not in self.runs:
            raise MlflowException(f"Run with id={run_id} not found", error_code=RESOURCE_DOES_NOT_EXIST)
        run = self.runs[run_id]
        if run.deleted:
            raise MlflowException(f"The run {run_id} must be in the 'active' state.", error_code=INVALID_PARAMETER_VALUE)
        return run

    def get_run(self, run_id: str) -> Any:
        return self._run(run_id).view()

    def search_runs(
        self,
        experiment_ids: list[str],
        filter_string: str = "",
        max_results: int = 1000,
        page_token: str | None = None,
        order_by: Iterable[str] = (),
    ) -> Page:
        wanted = _CONDITION.findall(filter_string)
        found = [
            run for run in self.runs.values() if not run.deleted and all(run.tags.get(key) == value for key, value in wanted)
        ]
        return Page(run.view() for run in sorted(found, key=lambda run: run.start_ms))

    def set_tag(self, run_id: str, key: str, value: Any) -> None:
        self._run(run_id).tags[key] = str(value)

    def delete_tag(self, run_id: str, key: str) -> None:
        if key not in self._run(run_id).tags:
            raise MlflowException(f"No tag with name: {key}", error_code=RESOURCE_DOES_NOT_EXIST)
        del self._run(run_id).tags[key]

    def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
        run = self._run(run_id)
        run.status, run.name = status or run.status, name or run.name

    def set_terminated(self, run_id: str, status: str | None = None, end_time: int | None = None) -> None:
        self._run(run_id).status = status or "FINISHED"

    def delete_run(self, run_id: str) -> None:
        self._run(run_id).deleted = True

    def log_batch(self, run_id: str, metrics: Iterable[Metric] = (), params: Iterable[Param] = (), **_: Any) -> None:
        run = self._run(run_id)
        for param in params:
            if run.params.get(param.key, param.value) != param.value:
                raise MlflowException(
                    f"Changing param values is not allowed. Param with key='{param.key}' was already logged",
                    error_code=INVALID_PARAMETER_VALUE,
                )
        run.params |= {param.key: param.value for param in params}
        for metric in metrics:
            nan = math.isnan(metric.value)
            run.rows[(metric.key, 0.0 if nan else metric.value, metric.timestamp, metric.step, nan)] = None

    def log_metric(self, run_id: str, key: str, value: float, timestamp: int | None = None, step: int | None = None) -> None:
        self.log_batch(run_id, metrics=[Metric(key, value, timestamp or self.now_ms(), step or 0)])

    def get_metric_history(self, run_id: str, key: str) -> list[Metric]:
        rows = [row for row in self._run(run_id).rows if row[0] == key]
        return [Metric(key, math.nan if nan else value, when, step) for _, value, when, step, nan in rows]

    def log_dict(self, run_id: str, dictionary: dict[str, Any], artifact_file: str) -> None:
        self._run(run_id).artifacts[artifact_file] = json.dumps(dictionary).encode()

    def log_artifacts(self, run_id: str, local_dir: str, artifact_path: str | None = None) -> None:
        for file in Path(local_dir).iterdir():
            self._run(run_id).artifacts[f"{artifact_path}/{file.name}"] = file.read_bytes()


class Client:
    """Stands in for `MlflowClient`: each call goes through `carry(method, call)`, which may lose it or its answer."""

    def __init__(self, server: Server, carry: Callable[[str, Callable[[], Any]], Any]) -> None:
        self._server = server
        self._carry = carry

    def __getattr__(self, method: str) -> Callable[..., Any]:
        function = getattr(self._server, method)

        def call(*arguments: Any, **options: Any) -> Any:
            if method == "create_run":
                options.setdefault("start_time", self._server.now_ms())  # MLflow's client says when, not its server
            return self._carry(method, lambda: function(*arguments, **options))

        return call
