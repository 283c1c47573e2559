"""What MLflow holds of a sweep, written twice, with gaps, and while it is away."""

import threading
from pathlib import Path
from typing import Any

import pytest

from prolu_tune.config.trial import TrialConfig
from prolu_tune.durable import sealed
from prolu_tune.errors import SurroundingsError
from prolu_tune.results.store import resolve_tracking_uri
from prolu_tune.sweep.mlflow_writer import MlflowWriter
from prolu_tune.sweep.study import TrialResult
from prolu_tune.sweep.tracking import Tracker

CONFIG = TrialConfig()
RESULT = {"l0": 12.5, "ce_degradation": 0.25, "steps": 20.0}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


def _writer(storage: Path, sweep: str) -> MlflowWriter:
    return MlflowWriter(resolve_tracking_uri(None, storage), experiment="test", artifacts=storage / "artifacts", sweep=sweep)


def _client(storage: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(resolve_tracking_uri(None, storage))


def _trial_folder(storage: Path, sweep: str) -> Path:
    folder = storage / sweep / "0000"
    (folder / "sae").mkdir(parents=True)
    (folder / "sae" / "config.json").write_text("{}")
    rows = [{"step": 10, "loss": 2.0, "l0": 30.0}, {"step": 20, "loss": None, "l0": 12.0}]
    (folder / "metrics.jsonl").write_text(b"".join(map(sealed, rows)).decode() + '{"step": 30, "lo')
    return folder


def test_a_trial_written_by_two_drivers_in_turn_is_one_run_with_each_row_once(storage: Path) -> None:
    folder = _trial_folder(storage, "twice")
    result = TrialResult(outcome="finished", record=RESULT, checkpoint=str(folder / "sae"), notes="few inputs")
    first = _writer(storage, "twice")
    first.start_trial(0, CONFIG)
    first.log_rows(0, folder / "metrics.jsonl")
    for _ in range(2):
        writer = _writer(storage, "twice")
        writer.start_trial(0, CONFIG) if writer.tracked.children[0].state != "finished" else None
        writer.end_trial(0, CONFIG, result, folder)
    client = _client(storage)
    experiment = client.get_experiment_by_name("test").experiment_id
    runs = client.search_runs([experiment], "tags.`prolu.sweep` = 'twice'")
    assert sorted(run.data.tags["prolu.kind"] for run in runs) == ["sweep", "trial"]
    child = next(run for run in runs if run.data.tags["prolu.kind"] == "trial")
    history = client.get_metric_history(child.info.run_id, "train/l0")
    assert [(m.step, m.value) for m in history] == [(10, 30.0), (20, 12.0)]
    assert [m.value for m in client.get_metric_history(child.info.run_id, "l0")] == [12.5]
    assert child.data.params["training.lr"] == "0.001"
    assert child.data.tags["prolu.state"] == "finished"
    assert child.data.tags["prolu.notes"] == "few inputs"
    assert "prolu.numerics" not in child.data.tags
    assert child.info.status == "FINISHED"
    assert (Path(child.info.artifact_uri.removeprefix("file://")) / "sae" / "config.json").read_text() == "{}"


class _ParamsWriter(MlflowWriter):
    """Counts how often parameters are noted, and dies before that if told to."""

    noted = 0
    dies = False

    def _log_params(self, *arguments: Any) -> None:
        if self.dies:
            raise KeyboardInterrupt
        self.noted += 1
        super()._log_params(*arguments)


def test_parameters_are_noted_once_unless_a_driver_died_before_that(storage: Path) -> None:
    folder = _trial_folder(storage, "params")
    result = TrialResult(outcome="finished", record=RESULT)
    uri = resolve_tracking_uri(None, storage)

    def writer() -> _ParamsWriter:
        return _ParamsWriter(uri, experiment="test", artifacts=storage / "artifacts", sweep="params")

    first = writer()
    first.start_trial(0, CONFIG)
    first.end_trial(0, CONFIG, result, folder)
    first.dies = True
    with pytest.raises(KeyboardInterrupt):
        first.start_trial(1, CONFIG)
    second = writer()
    second.start_trial(1, CONFIG)
    second.end_trial(1, CONFIG, result, folder)
    assert (first.noted, second.noted) == (1, 1)
    client = _client(storage)
    children = [client.get_run(run.run_id) for run in second.tracked.children.values()]
    assert [run.data.params["training.lr"] for run in children] == ["0.001", "0.001"]


def test_the_frontier_tag_is_given_and_taken(storage: Path) -> None:
    writer = _writer(storage, "frontier")
    for index in range(3):
        writer.start_trial(index, CONFIG)
    writer.mark_frontier({0, 1})
    writer.mark_frontier({1, 2})
    tagged = _client(storage).search_runs(
        [_client(storage).get_experiment_by_name("test").experiment_id],
        "tags.`prolu.sweep` = 'frontier' and tags.`prolu.pareto` = 'true'",
    )
    assert sorted(run.data.tags["prolu.trial"] for run in tagged) == ["1", "2"]


def test_while_mlflow_is_away_calls_wait_and_then_all_arrive_in_order(storage: Path) -> None:
    notes: list[str] = []
    back = threading.Event()

    def make_writer() -> MlflowWriter:
        if not back.is_set():
            raise ConnectionError("connection refused")
        return _writer(storage, "away")

    def note(text: str) -> None:
        notes.append(text)
        back.set()

    tracker = Tracker(make_writer, note=note)
    done: list[int] = []
    for i in range(5):
        tracker.call(lambda writer, i=i: done.append(i))
    tracker.close(timeout_s=30)
    assert done == [0, 1, 2, 3, 4]
    assert notes[0].startswith("MLflow does not take values (connection refused)")
    assert notes[-1] == "MLflow takes values again"


def test_an_mlflow_that_stays_away_ends_in_a_message_not_a_hang(storage: Path) -> None:
    def make_writer() -> MlflowWriter:
        raise ConnectionError("connection refused")

    notes: list[str] = []
    away = threading.Event()

    def note(text: str) -> None:
        notes.append(text)
        away.set()

    tracker = Tracker(make_writer, note=note)
    tracker.call(lambda writer: None)
    assert away.wait(10)
    with pytest.raises(SurroundingsError, match="nothing is lost: run the same command again"):
        tracker.close(timeout_s=1.2)
    assert notes[1:] == ["waiting 1 s for MLflow at most"]


def test_a_trial_whose_autoencoder_is_gone_is_not_called_complete(storage: Path) -> None:
    folder = storage / "gone" / "0000"
    result = TrialResult(outcome="finished", record=RESULT, checkpoint=str(folder / "sae"))
    writer = _writer(storage, "gone")
    with pytest.raises(LookupError, match="sae is gone"):
        writer.end_trial(0, CONFIG, result, folder)
    assert not _writer(storage, "gone").has_ended(0, result)
