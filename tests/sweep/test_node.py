"""A node's server, as the trials and the driver use it: the bundled model, no Ray."""

from pathlib import Path

import pytest

from prolu_tune.config.trial import ActivationConfig, EvaluationConfig
from prolu_tune.errors import InputError
from prolu_tune.sweep.node import CONTEXT_BYTES, NodeServer, cache_folder, trial_share
from prolu_tune.sweep.settings import NodeSettings


def _server(folder: Path, **settings: object) -> NodeServer:
    activations = ActivationConfig.model_validate({"chunk_tokens": 4096, "lm_threads": 1} | settings)
    evaluation = EvaluationConfig(num_tokens=1024)
    return NodeServer(
        NodeSettings(activations=activations, evaluation=evaluation, cache_dir=str(folder / "cache"), device="cpu")
    )


def test_a_chunk_passes_through_the_language_model_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    server = _server(tmp_path)
    paths = {server.ensure_chunk(1) for _ in range(3)}
    assert len(paths) == 1
    assert server.tokens_processed()["train"] == server.describe().chunk_tokens


def test_what_a_trial_notes_reaches_the_driver_once(tmp_path: Path) -> None:
    server = _server(tmp_path)
    server.note("damaged activation cache file, computed again: x")
    assert server.state()["notes"] == ["damaged activation cache file, computed again: x"]
    assert server.state()["notes"] == []


def test_a_run_that_wants_more_than_the_data_holds_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.num_tokens is 900,000,000, but .* set activations\.epochs to \d+"):
        _server(tmp_path).check(900_000_000)


def test_an_unknown_hook_is_refused_with_the_close_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"blocks\.2\.hook_resid_pre"):
        _server(tmp_path, hook_name="blocks.2.hook_resid_prr").check(4096)


def test_shares_of_a_gpu_leave_room_for_the_language_model_and_each_process() -> None:
    gigabyte = 10**9
    for share in (0.5, 0.25, 0.1):
        trials = int(1 / share)
        given = trial_share(share, total=80 * gigabyte, taken=5 * gigabyte)
        assert trials * given * 80 + 5 + (trials + 1) * CONTEXT_BYTES / gigabyte == pytest.approx(80)


def test_a_gpu_that_the_language_model_fills_is_said_so() -> None:
    with pytest.raises(InputError, match=r"takes 15\.0 of the GPU's 16\.0 GB"):
        trial_share(0.25, total=16 * 10**9, taken=15 * 10**9)


def test_trials_without_a_share_of_a_gpu_are_not_fenced(tmp_path: Path) -> None:
    assert _server(tmp_path).gpu_share(0.25) is None


def test_a_server_told_to_stop_says_so_to_its_trials(tmp_path: Path) -> None:
    server = _server(tmp_path)
    assert not server.stopping()
    server.stop()
    assert server.stopping()


def test_on_a_cluster_activations_lie_on_the_nodes_own_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROLU_SCRATCH", str(tmp_path / "scratch"))
    settings = NodeSettings(activations=ActivationConfig(), evaluation=EvaluationConfig(), cache_dir=None, device="cpu")
    assert cache_folder(settings) == tmp_path / "scratch" / "cache"
