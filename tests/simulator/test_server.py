"""The server in memory answers as MLflow's own SQLite store does."""

import math
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from prolu_tune.config.trial import TrialConfig
from prolu_tune.durable import sealed
from prolu_tune.sweep.mlflow_writer import MlflowWriter
from prolu_tune.sweep.study import TrialResult
from simulator.server import Client, Server


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}")


def _fake(folder: Path) -> Client:
    return Client(Server(folder / "artifacts", lambda: 1_700_000_000_000), lambda method, call: call())


def _write(client: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowWriter:
    """What a sweep of two trials does, with a second start in between."""
    monkeypatch.setattr("mlflow.MlflowClient", lambda **_: client)
    for index in range(2):
        (folder / f"{index}" / "sae").mkdir(parents=True)
        (folder / f"{index}" / "sae" / "config.json").write_text("{}")
        lines = [{"step": step, "loss": None if step == 2 else 1.0 / step, "l0": 20.0} for step in (1, 2, 3)]
        (folder / f"{index}" / "metrics.jsonl").write_bytes(b"".join(map(sealed, lines)))
    for _ in range(2):
        writer = MlflowWriter("simulated", experiment="e", artifacts=folder / "artifacts", sweep="s")
        writer.start_sweep({"a": 1}, 2)
        for index in range(2):
            result = TrialResult(
                outcome=("finished", "diverged")[index],
                record={"l0": 20.0, "steps": 3.0},
                checkpoint=str(folder / f"{index}" / "sae"),
            )
            writer.start_trial(index, TrialConfig())
            writer.log_rows(index, folder / f"{index}" / "metrics.jsonl")
            writer.end_trial(index, TrialConfig(), result, folder / f"{index}")
        writer.mark_frontier({0, 1})
        writer.mark_frontier({1})
        writer.end_sweep("FINISHED", {"num_ended": 2.0})
    return writer


def _content(client: Any, writer: MlflowWriter) -> list[Any]:
    """Everything of a sweep's runs but ids and times."""
    runs = client.search_runs([client.get_experiment_by_name("e").experiment_id], "tags.`prolu.sweep` = 's'")
    keys = ("train/loss", "train/l0", "l0", "steps", "num_ended")
    told = []
    for run in runs:
        tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.") and "checkpoint" not in key}
        history = {
            key: [
                (m.step, None if math.isnan(m.value) else m.value, m.timestamp - run.info.start_time)
                for m in sorted(client.get_metric_history(run.info.run_id, key), key=lambda m: (m.step, m.timestamp))
            ]
            for key in keys
        }
        told.append((run.info.run_name, run.info.status, sorted(tags.items()), sorted(run.data.params.items()), history))
    assert len(told) == 1 + len(writer.tracked.children)
    return sorted(told, key=str)


def test_the_same_calls_leave_the_same_runs(real: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = _fake(tmp_path / "fake")
    written = _write(fake, tmp_path / "fake", monkeypatch)
    really_written = _write(real, tmp_path / "real", monkeypatch)
    assert _content(fake, written) == _content(real, really_written)


def test_what_the_real_store_refuses_is_refused_with_the_same_code(real: MlflowClient, tmp_path: Path) -> None:
    fake = _fake(tmp_path)
    codes = []
    for client in (real, fake):
        experiment = client.create_experiment("refusals")
        run = client.create_run(experiment).info.run_id
        client.log_batch(run, params=[Param("a", "1")])
        client.log_batch(run, params=[Param("a", "1")])
        for _ in range(2):
            client.log_batch(run, metrics=[Metric("m", 1.0, 5, 1), Metric("m", math.nan, 5, 1)])
        rows = sorted((m.step, str(m.value)) for m in client.get_metric_history(run, "m"))
        refused = []
        for call in (
            lambda client=client: client.create_experiment("refusals"),
            lambda client=client, run=run: client.log_batch(run, params=[Param("a", "2")]),
            lambda client=client: client.get_run("0" * 32),
            lambda client=client, run=run: client.delete_tag(run, "nothing"),
            lambda client=client, run=run: (client.delete_run(run), client.set_tag(run, "a", "b")),
        ):
            with pytest.raises(MlflowException) as caught:
                call()
            refused.append(caught.value.error_code)
        codes.append((rows, refused))
    assert codes[0] == codes[1]
