"""A node's server, as the trials and the driver use it: the bundled model, no Ray."""

from pathlib import Path

import pytest

from prolu_tune.config.trial import ActivationConfig, EvaluationConfig
from prolu_tune.errors import InputError
from prolu_tune.sweep.node import NodeServer
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
