"""The study as the truth of a sweep."""

import json
import math
from pathlib import Path

import pytest
from optuna.trial import TrialState

from prolu_tune.search.space import SearchSpace
from prolu_tune.sweep.files import SweepFolder, SweepLock
from prolu_tune.sweep.study import GridProposer, Proposal, SweepStudy, TrialResult, next_index

SPACE = SearchSpace.model_validate(
    {"name": "s", "architectures": {"relu+l1": {"l1_coefficient": [0.1, 1.0]}, "prolu_ste+l1": {"l1_coefficient": [0.5]}}}
)


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder.of(tmp_path, "s")
    folder.create()
    return folder


def _propose_all(study: SweepStudy) -> list[Proposal]:
    proposer, proposals = GridProposer(SPACE), []
    while isinstance(proposal := proposer.propose(study.optuna_study), Proposal):
        proposals.append(proposal)
    return proposals


def test_trials_are_found_among_entries_that_are_none_and_the_newest_of_a_retried_one_counts(folder: SweepFolder) -> None:
    study = SweepStudy(folder, "s")
    unborn = study.optuna_study.ask()
    proposals = _propose_all(study)
    study.finish(0, TrialResult(outcome="failed", record={}))
    assert study.retry(["failed"]) == [0]
    assert {i: entry.number for i, entry in study.entries().items()} == {0: 4, 1: 2, 2: 3}
    # A crash may come between an entry's birth and its configuration; another driver sees it when it is whole.
    unborn.set_user_attr("index", 3)
    unborn.set_user_attr("config", proposals[0].config.model_dump_json())
    for seen in (study, SweepStudy(folder, "s")):
        assert {i: entry.number for i, entry in seen.entries().items()} == {0: 4, 1: 2, 2: 3, 3: 0}
        assert next_index(seen.optuna_study) == 4


def test_a_grid_is_proposed_once_in_its_order_whatever_is_reopened(folder: SweepFolder) -> None:
    first = GridProposer(SPACE).propose(SweepStudy(folder, "s").optuna_study)
    rest = _propose_all(SweepStudy(folder, "s"))
    assert isinstance(first, Proposal)
    assert [p.config for p in (first, *rest)] == SPACE.trials()
    assert [p.index for p in (first, *rest)] == [0, 1, 2]
    assert GridProposer(SPACE).propose(SweepStudy(folder, "s").optuna_study) == "done"


def test_unfinished_trials_come_back_with_their_whole_configuration(folder: SweepFolder) -> None:
    study = SweepStudy(folder, "s")
    _propose_all(study)
    study.finish(1, TrialResult(outcome="finished", record={"l0": 20.5, "mse": 0.1}, checkpoint="x", course=[(0.5, 30.0)]))
    again = SweepStudy(folder, "s")
    assert [(p.index, p.config) for p in again.unfinished(GridProposer(SPACE))] == [
        (0, SPACE.trials()[0]),
        (2, SPACE.trials()[2]),
    ]
    assert again.results()[1] == TrialResult(
        outcome="finished", record={"l0": 20.5, "mse": 0.1}, checkpoint="x", course=[(0.5, 30.0)]
    )


def test_a_result_counts_once_and_floats_come_back_to_the_last_bit(folder: SweepFolder) -> None:
    study = SweepStudy(folder, "s")
    _propose_all(study)
    value = math.nextafter(20.5, 21)
    assert study.finish(0, TrialResult(outcome="finished", record={"l0": value}))
    assert not study.finish(0, TrialResult(outcome="failed", record={}))
    assert SweepStudy(folder, "s").results()[0].record["l0"] == value


def test_a_crash_between_storing_a_result_and_telling_it_is_mended_at_the_next_start(folder: SweepFolder) -> None:
    study = SweepStudy(folder, "s")
    _propose_all(study)
    study.finish(0, TrialResult(outcome="finished", record={"l0": 3.0}))
    records = folder.journal_file.read_bytes().splitlines(keepends=True)
    stored = next(i for i, line in enumerate(records) if "result" in json.loads(line).get("user_attr", {}))
    folder.journal_file.write_bytes(b"".join(records[: stored + 1]))
    trials = SweepStudy(folder, "s").optuna_study.trials
    assert (trials[0].state, trials[0].value, trials[0].user_attrs["outcome"]) == (TrialState.COMPLETE, 3.0, "finished")


def test_diverged_and_failed_trials_are_outcomes_and_only_failed_ones_are_retried(folder: SweepFolder) -> None:
    study = SweepStudy(folder, "s")
    _propose_all(study)
    study.finish(0, TrialResult(outcome="diverged", record={"l0": math.nan}, message="lower the lr"))
    study.finish(1, TrialResult(outcome="failed", record={}, message="boom"))
    assert study.results()[0].record == {"l0": None}
    assert study.retry(["failed"]) == [1]
    assert [p.index for p in SweepStudy(folder, "s").unfinished(GridProposer(SPACE))] == [1, 2]
    assert set(SweepStudy(folder, "s").results()) == {0}


def test_a_second_driver_is_told_who_runs_the_sweep(folder: SweepFolder) -> None:
    lock = SweepLock(folder)
    lock.acquire()
    with pytest.raises(Exception, match=r"process \d+ on .+; wait for it or stop it"):
        SweepLock(folder).acquire()
    lock.release()
    other = SweepLock(folder)
    other.acquire()
    other.release()
