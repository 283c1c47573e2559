"""A trial as a function, and its rows on disk."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from prolu_tune.config.resolve import plan_trial
from prolu_tune.config.trial import ResamplingConfig, SaeConfig, TrainingConfig, TrialConfig
from prolu_tune.sweep.study import TrialResult
from prolu_tune.sweep.trial import MetricsFile, run_trial


def _row(step: int, loss: float) -> dict[str, float]:
    return {"step": step, "loss": loss, "l0": 1.5}


def test_a_resumed_trial_leaves_each_step_once_and_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in (10, 20, 30):
        first.append(_row(step, step / 10))
    with path.open("ab") as out:
        out.write(b'{"step": 40, "lo')
    second = MetricsFile(path)
    assert [row["step"] for row in second.rows] == [10, 20, 30]
    for step in (20, 30, 40):
        second.append(_row(step, step / 10))
    undisturbed = MetricsFile(tmp_path / "undisturbed.jsonl")
    for step in (10, 20, 30, 40):
        undisturbed.append(_row(step, step / 10))
    assert path.read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()


def test_a_loss_that_is_no_number_is_kept_as_null(tmp_path: Path) -> None:
    rows = MetricsFile(tmp_path / "metrics.jsonl")
    rows.append(_row(10, float("nan")))
    assert MetricsFile(tmp_path / "metrics.jsonl").rows == [{"step": 10, "loss": None, "l0": 1.5}]


def _run(folder: Path, evaluated: list[Path]) -> TrialResult | None:
    config = TrialConfig(
        sae=SaeConfig(d_sae=16),
        training=TrainingConfig(num_tokens=32 * 20, batch_size=32, log_every=5),
        resampling=ResamplingConfig(steps=(10,), num_tokens=32),
    )

    def batches(first_token: int) -> Iterator[Tensor]:
        for i in range(first_token // 32, 20):
            yield torch.randn(32, 4, generator=torch.Generator().manual_seed(i))

    def evaluate(sae_folder: Path) -> dict[str, float]:
        evaluated.append(sae_folder)
        return {"l0": 3.0}

    return run_trial(
        config,
        plan=plan_trial(config, d_in=4),
        batches=batches,
        evaluate=evaluate,
        report=lambda row: None,
        folder=folder,
        device="cpu",
        should_stop=lambda: False,
    )


def test_a_trial_that_was_trained_is_evaluated_again_and_says_the_same(tmp_path: Path) -> None:
    evaluated: list[Path] = []
    first = _run(tmp_path / "trial", evaluated)
    assert first is not None
    assert first.outcome == "finished"
    assert first.record == {"steps": 19, "tokens": 640, "wall_s": first.record["wall_s"], "l0": 3.0}
    # 320 activations cannot tell a frequency of 3e-6.
    assert first.notes is not None
    assert "cannot resolve resampling.dead_frequency" in first.notes
    sae = (tmp_path / "trial" / "sae" / "sae.safetensors").read_bytes()
    assert _run(tmp_path / "trial", evaluated) == first
    assert (tmp_path / "trial" / "sae" / "sae.safetensors").read_bytes() == sae
    assert evaluated == [tmp_path / "trial" / "sae"] * 2
