"""A coverage sweep through the study: the same trials whatever is killed and reopened in between."""

import pickle
from pathlib import Path

from prolu_tune.search.space import SearchSpace
from prolu_tune.sweep.coverage_search import CoverageProposer
from prolu_tune.sweep.files import SweepFolder
from prolu_tune.sweep.study import Proposal, SweepStudy, TrialResult

SPACE = SearchSpace.model_validate(
    {
        "name": "c",
        "architectures": {
            "relu+l1": {"l1_coefficient": {"low": 1e-3, "high": 100}},
            "prolu_ste+l1": {"l1_coefficient": {"low": 1e-3, "high": 100}},
        },
        "search": {"kind": "coverage", "l0": [10, 80], "bins": 4, "max_trials": 40, "window": 2},
    }
)


def _l0(proposal: Proposal) -> float:
    """A power law; the second architecture answers more steeply."""
    slope, scale = (1.2, 40.0) if proposal.config.sae.nonlinearity == "relu" else (1.8, 15.0)
    return min(400.0, scale * proposal.config.training.l1_coefficient**-slope)


def _result(proposal: Proposal) -> TrialResult:
    l0 = _l0(proposal)
    return TrialResult(outcome="finished", record={"l0": l0}, course=[(0.5, 1.3 * l0), (1.0, l0)])


def _run(folder: SweepFolder, *, reopen: bool) -> list[tuple[int, str, float]]:
    folder.create()
    proposer = CoverageProposer(SPACE)
    study = SweepStudy(folder, "c", sampler=proposer.sampler)
    asked = []
    while True:
        if reopen:
            proposer = CoverageProposer(SPACE)
            study = SweepStudy(folder, "c", sampler=proposer.sampler)
        proposal = proposer.propose(study.optuna_study)
        if not isinstance(proposal, Proposal):
            assert proposal == "done"
            assert proposer.total(study.optuna_study) == len(asked)
            return asked
        if reopen:
            again = SweepStudy(folder, "c", sampler=proposer.sampler).unfinished(proposer)
            assert [(p.index, p.config) for p in again] == [(proposal.index, proposal.config)]
        asked.append((proposal.index, proposal.config.sae.architecture, proposal.config.training.l1_coefficient))
        study.finish(proposal.index, _result(proposal))


def test_a_sweep_reopened_before_every_trial_asks_the_same_and_fills_every_bin(tmp_path: Path) -> None:
    undisturbed = _run(SweepFolder.of(tmp_path / "a", "c"), reopen=False)
    assert _run(SweepFolder.of(tmp_path / "b", "c"), reopen=True) == undisturbed
    assert [index for index, _, _ in undisturbed] == list(range(len(undisturbed)))
    proposer = CoverageProposer(SPACE)
    study = SweepStudy(SweepFolder.of(tmp_path / "a", "c"), "c", sampler=proposer.sampler)
    metrics = proposer.metrics(study.optuna_study)
    assert metrics["coverage/relu_l1/filled"] == metrics["coverage/prolu_ste_l1/filled"] == 4
    assert len(undisturbed) < 20


def _continue(folder: SweepFolder, **search: int) -> list[tuple[int, str, float]]:
    """Goes on with a sweep under other budgets; returns the trials that it asked for now."""
    changed = SPACE.model_copy(update={"search": SPACE.search.model_copy(update=search)})
    assert changed.identity() == SPACE.identity()
    proposer = CoverageProposer(changed)
    study = SweepStudy(folder, "c", sampler=proposer.sampler)
    asked = []
    while isinstance(proposal := proposer.propose(study.optuna_study), Proposal):
        asked.append((proposal.index, proposal.config.sae.architecture, proposal.config.training.l1_coefficient))
        study.finish(proposal.index, _result(proposal))
    return asked


def test_raising_max_trials_or_bins_goes_on_with_the_same_sweep(tmp_path: Path) -> None:
    whole = _run(SweepFolder.of(tmp_path / "a", "c"), reopen=False)
    folder = SweepFolder.of(tmp_path / "b", "c")
    folder.create()
    first = _continue(folder, max_trials=5)
    assert first == whole[:5]
    assert _continue(folder, max_trials=5) == []
    assert first + _continue(folder, max_trials=40) == whole
    finer = _continue(folder, max_trials=60, bins=8)
    assert [index for index, _, _ in finer] == list(range(len(whole), len(whole) + len(finer)))
    proposer = CoverageProposer(SPACE.model_copy(update={"search": SPACE.search.model_copy(update={"bins": 8})}))
    metrics = proposer.metrics(SweepStudy(folder, "c", sampler=proposer.sampler).optuna_study)
    assert metrics["coverage/relu_l1/filled"] == metrics["coverage/prolu_ste_l1/filled"] == 8
    assert len(whole) + len(finer) < 28
    again = _continue(folder, max_trials=80, bins=8, repeats=1)
    assert 12 <= len(again) <= 20


def test_a_driver_killed_before_a_proposal_was_whole_proposes_the_same_again(tmp_path: Path) -> None:
    folder = SweepFolder.of(tmp_path, "c")
    folder.create()
    proposer = CoverageProposer(SPACE)
    study = SweepStudy(folder, "c", sampler=proposer.sampler)
    before = folder.journal_file.stat().st_size
    first = proposer.propose(study.optuna_study)
    assert isinstance(first, Proposal)
    journal = folder.journal_file.read_bytes()
    ends = [i + 1 for i in range(before, len(journal)) if journal[i : i + 1] == b"\n"]
    assert len(ends) >= 5
    for end in ends[:-1]:
        folder.journal_file.write_bytes(journal[:end])
        proposer = CoverageProposer(SPACE)
        again = proposer.propose(SweepStudy(folder, "c", sampler=proposer.sampler).optuna_study)
        assert isinstance(again, Proposal)
        assert (again.index, again.config) == (first.index, first.config)


def test_early_stopping_decides_alike_before_and_after_a_restart(tmp_path: Path) -> None:
    folder = SweepFolder.of(tmp_path, "c")
    folder.create()
    proposer = CoverageProposer(SPACE)
    study = SweepStudy(folder, "c", sampler=proposer.sampler)
    for _ in range(6):
        proposal = proposer.propose(study.optuna_study)
        assert isinstance(proposal, Proposal)
        study.finish(proposal.index, _result(proposal))
    last = proposer.propose(study.optuna_study)
    assert isinstance(last, Proposal)
    other = CoverageProposer(SPACE)
    again = SweepStudy(folder, "c", sampler=other.sampler).unfinished(other)[0]
    course = [(0.1, 300.0), (0.2, 290.0), (0.4, 280.0)]
    assert last.stop_rule is not None and again.stop_rule is not None
    travelled = pickle.loads(pickle.dumps(last.stop_rule))  # as Ray sends it to the trial's process
    assert last.stop_rule.decide(course) == again.stop_rule.decide(course) == travelled.decide(course)
    assert last.stop_rule.decide([]) == (False, None)
