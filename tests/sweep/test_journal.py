"""The study's journal after a crash."""

from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from prolu_tune.errors import SurroundingsError
from prolu_tune.sweep.journal import repair_journal


def _study(path: Path) -> optuna.Study:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    return optuna.create_study(study_name="s", storage=storage, load_if_exists=True)


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("journal") / "study.journal"
    study = _study(path)
    for value in (1.0, 2.0):
        study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), value)
    return path.read_bytes()


def test_a_journal_cut_at_any_byte_of_its_last_record_opens_and_goes_on(journal: bytes, tmp_path: Path) -> None:
    last = journal.rfind(b"\n", 0, -1) + 1
    path = tmp_path / "study.journal"
    for cut in range(last + 1, len(journal)):
        path.write_bytes(journal[:cut])
        assert repair_journal(path) == cut - last
        assert path.read_bytes() == journal[:last]
        assert path.with_name("study.journal.torn").read_bytes() == journal[last:cut]
    study = _study(path)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    study.tell(1, 2.0)
    study.tell(study.ask(), 3.0)
    assert [trial.value for trial in _study(path).trials] == [1.0, 2.0, 3.0]


def test_without_the_repair_optuna_loses_such_a_journal_so_that_the_repair_is_needed(journal: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(journal[:-10])
    study = _study(path)
    with pytest.raises(Exception, match=r".+"):
        for _ in range(3):
            study.tell(study.ask(), 1.0)
        assert len(_study(path).trials) == 5


def test_a_whole_journal_is_left_alone_and_what_a_killed_driver_left_is_removed(journal: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    path.write_bytes(journal)
    lock = path.with_name("study.journal.lock")
    lock.symlink_to(path)
    for left in ("study.journal.tmp", "study.journal.torn.tmp"):
        path.with_name(left).write_bytes(b"a copy that a killed driver had not yet renamed")
    assert repair_journal(path) == 0
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == journal
    assert repair_journal(tmp_path / "missing") == 0


def test_damage_in_the_middle_is_refused_with_its_place(journal: bytes, tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    second = journal.find(b"\n") + 1
    path.write_bytes(journal[:second] + b"#" + journal[second + 1 :])
    with pytest.raises(SurroundingsError, match=f"damaged at byte {second}"):
        repair_journal(path)
