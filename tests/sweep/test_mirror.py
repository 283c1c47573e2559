"""A sweep in a bucket has one driver at a time, and any machine can go on with it."""

import json
import threading
from pathlib import Path

import pytest

from prolu_tune.errors import SurroundingsError
from prolu_tune.sweep import mirror as module
from prolu_tune.sweep.files import SweepFolder
from prolu_tune.sweep.mirror import SweepMirror, TakenOverError
from prolu_tune.sweep.place import TrialPlace
from prolu_tune.sweep.settings import NodeSettings, WorkerSettings


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.1)
    monkeypatch.setattr(module, "SILENCE_S", 0.4)


def _driver(tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> SweepMirror:
    """A driver of the same sweep on a machine of this name."""
    monkeypatch.setattr(module.socket, "gethostname", lambda: host)
    folder = SweepFolder.of(tmp_path / host, "exp")
    folder.create()
    return SweepMirror(folder, (tmp_path / "bucket").as_uri())


def test_a_lost_head_is_replaced_by_another_that_finds_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _driver(tmp_path, "head1", monkeypatch)
    first.take()
    (tmp_path / "head1/sweeps/exp/study.journal").write_text("one\n")
    first.push()
    second = _driver(tmp_path, "head2", monkeypatch)
    second.take()
    assert (tmp_path / "head2/sweeps/exp/study.journal").read_text() == "one\n"
    assert second.uri == first.uri
    with pytest.raises(TakenOverError, match="head2"):
        first.push()


def test_a_driver_that_lives_is_not_pushed_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _driver(tmp_path, "head1", monkeypatch)
    first.take()
    told: list[str] = []
    first.start(told.append, told.append)
    second = _driver(tmp_path, "head2", monkeypatch)
    with pytest.raises(SurroundingsError, match=r"another prolu-tune runs this sweep: process \d+ on head1"):
        second.take()
    first.release()
    second.take()
    assert told == []


def test_a_driver_that_was_overtaken_is_told_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _driver(tmp_path, "head1", monkeypatch)
    first.take()
    second = _driver(tmp_path, "head2", monkeypatch)
    second.take()
    told: list[str] = []
    first.start(told.append, told.append)
    assert first._thread is not None
    first._thread.join(5)
    assert told == ["the driver on head2 has taken over this sweep; this one ends"]


def test_the_same_machine_goes_on_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 1e9)
    _driver(tmp_path, "head1", monkeypatch).take()
    _driver(tmp_path, "head1", monkeypatch).take()
    record = json.loads((tmp_path / "bucket/sweeps/exp/driver.json").read_text())
    assert (record["epoch"], record["host"]) == (2, "head1")


def test_a_fresh_sweep_is_another_place_and_the_old_one_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _driver(tmp_path, "head1", monkeypatch)
    first.take()
    old = first.uri
    (tmp_path / "head1/sweeps/exp/study.journal").write_text("old\n")
    first.release()
    second = _driver(tmp_path, "head1", monkeypatch)
    second.take()
    second._folder.archive()
    second._folder.create()
    second.begin_anew()
    second.push()
    assert second.uri != old
    assert not second._folder.journal_file.exists()
    third = _driver(tmp_path, "head3", monkeypatch)
    second.release()
    third.take()
    assert not third._folder.journal_file.exists()


def _worker(tmp_path: Path, machine: str, config: str, monkeypatch: pytest.MonkeyPatch) -> TrialPlace:
    monkeypatch.setenv("PROLU_SCRATCH", str(tmp_path / machine))
    node = NodeSettings.__new__(NodeSettings)
    settings = WorkerSettings(
        sweep_folder="/nowhere",
        mirror_uri=(tmp_path / "bucket").as_uri(),
        storage_token="",
        namespace="n",
        node=node,
        gpus_per_trial=0,
    )
    return TrialPlace(settings, 7, config)


def test_a_trial_goes_on_elsewhere_from_the_checkpoint_it_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prolu_tune.sweep.place.LOOK_EVERY_S", 0.05)
    first = _worker(tmp_path, "node1", "{}", monkeypatch)
    with first as place:
        (place.folder / "checkpoints").mkdir()
        (place.folder / "metrics.jsonl").write_text("row\n")
        (place.folder / "checkpoints" / "checkpoint-1.safetensors").write_text("weights")
        for _ in range(100):
            if (tmp_path / "bucket").exists() and list((tmp_path / "bucket").rglob("manifest.json")):
                break
            place._left.wait(0.05)
        # node1 is lost here: another attempt begins on node2 while the first never left
        with _worker(tmp_path, "node2", "{}", monkeypatch) as second:
            assert (second.folder / "checkpoints" / "checkpoint-1.safetensors").read_text() == "weights"
            assert (second.folder / "metrics.jsonl").read_text() == "row\n"


def test_an_index_with_another_configuration_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _worker(tmp_path, "node1", '{"lr": 1}', monkeypatch) as first:
        (first.folder / "trained.json").write_text("{}")
    with _worker(tmp_path, "node1", '{"lr": 2}', monkeypatch) as second:
        assert not (second.folder / "trained.json").exists()


def test_a_trial_that_has_ended_waits_for_a_bucket_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prolu_tune.sweep.place.RETRY_S", 0.05)
    with _worker(tmp_path, "node1", "{}", monkeypatch) as place:
        (place.folder / "trained.json").write_text("{}")
        (tmp_path / "bucket").write_text("in the way of the bucket's folder")
        back = threading.Timer(0.3, (tmp_path / "bucket").unlink)
        back.start()
    back.join()
    assert list((tmp_path / "bucket").rglob("manifest.json"))
    place.remove()
    assert not place.folder.exists()
