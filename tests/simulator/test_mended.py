"""Defects that the simulator found in the sweep's code, each on its own."""

import fcntl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prolu_tune.config.trial import TrialConfig
from prolu_tune.durable import make_folder
from prolu_tune.errors import SurroundingsError
from prolu_tune.search.space import SearchSpace
from prolu_tune.sweep import files, tracking
from prolu_tune.sweep.files import SweepFolder, alone_in_folder
from prolu_tune.sweep.mlflow_writer import MlflowWriter
from prolu_tune.sweep.study import TrialResult
from prolu_tune.sweep.tracking import Tracker
from simulator.server import Client, Server

SPACE = SearchSpace.model_validate({"name": "s", "architectures": {"relu+l1": {"l1_coefficient": [0.1]}}})
ENDED = TrialResult(outcome="finished", record={"l0": 3.0, "steps": 6.0})


def _writer(monkeypatch: pytest.MonkeyPatch, server: Server, carry: Callable[[str, Callable[[], Any]], Any]) -> MlflowWriter:
    monkeypatch.setattr("mlflow.MlflowClient", lambda **_: Client(server, carry))
    return MlflowWriter("simulated", experiment="e", artifacts=None, sweep="s")


def _at_once(method: str, call: Callable[[], Any]) -> Any:
    return call()


def _kinds(server: Server) -> list[str]:
    return sorted(run.tags["prolu.kind"] for run in server.runs.values() if not run.deleted)


def test_a_lost_answer_does_not_make_a_second_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server, lost = Server(tmp_path, lambda: 1_000), [0]
    monkeypatch.setattr(tracking, "RETRY_S", (0.01,))

    def carry(method: str, call: Callable[[], Any]) -> Any:
        answer = call()
        if method == "create_run":
            lost[0] += 1
            if lost[0] in (1, 3):
                raise ConnectionError("the answer was lost")
        return answer

    tracker = Tracker(lambda: _writer(monkeypatch, server, carry), note=lambda text: None)
    tracker.call(lambda writer: writer.start_trial(0, TrialConfig()))
    tracker.close(timeout_s=20)
    assert _kinds(server) == ["sweep", "trial"]


def test_of_two_runs_of_a_trial_the_one_that_was_written_to_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = Server(tmp_path, lambda: 1_000)
    writer = _writer(monkeypatch, server, _at_once)
    writer.start_sweep({}, 1)
    writer.end_trial(0, TrialConfig(), ENDED, tmp_path)
    (full,) = (run for run in server.runs.values() if run.tags["prolu.kind"] == "trial")
    tags = {"prolu.kind": "trial", "prolu.sweep": "s", "prolu.trial": "0", "prolu.state": "running", "mlflow.parentRunId": "x"}
    late = server.create_run("1", start_time=1, tags=tags)
    parent = server.create_run("1", start_time=1, tags={"prolu.kind": "sweep", "prolu.sweep": "s"})
    again = _writer(monkeypatch, server, _at_once)
    assert again.tracked.children[0].run_id == full.run_id
    assert again.tracked.parent_id == writer.tracked.parent_id
    assert {run.run_id for run in server.runs.values() if run.deleted} == {late.info.run_id, parent.info.run_id}


def test_each_start_of_a_sweep_has_its_own_row_of_the_parent_s_metrics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = Server(tmp_path, lambda: 1_000)
    for ended in (1.0, 2.0):
        writer = _writer(monkeypatch, server, _at_once)
        writer.start_sweep({}, 2)
        for _ in range(2):  # the second time because the answer was lost
            writer.end_sweep("KILLED", {"num_ended": ended})
    rows = server.get_metric_history(writer.tracked.parent_id, "num_ended")
    assert [(row.step, row.value) for row in rows] == [(1, 1.0), (2, 2.0)]


def test_a_trial_waits_for_a_dead_driver_s_worker_and_says_so_if_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []

    @alone_in_folder
    def work(*, folder: Path) -> None:
        seen.append(folder.name)

    folder = tmp_path / "trials" / "0007"
    folder.mkdir(parents=True)
    orphan = (folder / "lease").open("a")
    fcntl.flock(orphan, fcntl.LOCK_EX)
    monkeypatch.setattr(files, "LEASE_WAIT_S", 0.3)
    with pytest.raises(SurroundingsError, match=r"another process has been working in .*0007 for 0.3 s; stop it"):
        work(folder=folder)
    monkeypatch.setattr(files, "LEASE_WAIT_S", 10.0)
    threading.Timer(0.3, orphan.close).start()
    work(folder=folder)
    assert seen == ["0007"]


def test_a_disk_that_is_full_at_the_start_is_a_message_not_a_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from prolu_tune.sweep import runner

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "replace_file", full)
    with pytest.raises(SurroundingsError, match="is full; free some space, then run the same command again"):
        runner.run_sweep(SPACE, storage=tmp_path, tracking_uri="sqlite://", screen=_Silent())


class _Silent:
    """A screen that shows nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def test_a_folder_is_synced_even_if_a_killed_process_made_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("prolu_tune.durable.sync_folder", synced.append)
    (tmp_path / "a").mkdir()
    make_folder(tmp_path / "a")
    make_folder(tmp_path / "b" / "c")
    assert synced == [tmp_path, tmp_path / "b", tmp_path]


def test_a_write_test_that_a_kill_left_behind_is_gone_after_the_next_start(tmp_path: Path) -> None:
    folder = SweepFolder.of(tmp_path, "s")
    folder.create()
    (folder.root / ".write-test").write_text("left")
    folder.create()
    assert not (folder.root / ".write-test").exists()
