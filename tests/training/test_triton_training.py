"""Whole trainings on the Triton step and its update, which a GPU gets; under the interpreter here."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    # Read when kernels are defined, so before they are imported.
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="triton is not installed; the kernels run under its interpreter on the CPU too")

from prolu_tune.config.resolve import plan_trial
from prolu_tune.config.trial import ResamplingConfig, SaeConfig, TrainingConfig, TrialConfig
from prolu_tune.training import state
from prolu_tune.training.choice import Crossover
from prolu_tune.training.paths import SparsePath
from prolu_tune.training.state import Trainer
from prolu_tune.training.trainer import train
from prolu_tune.training.triton_step import TritonStep, fused_update

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
D_IN, D_SAE, BATCH, STEPS = 6, 40, 16, 24
# Sparse as soon as it is looked at, which is every fourth step as on a GPU.
SOON = Crossover(density=1.0, fixed_columns=0, every=4)


def _config(*, sparse_step: bool) -> TrialConfig:
    return TrialConfig(
        sae=SaeConfig(nonlinearity="prolu_ste", penalty="sqrt_l1", d_sae=D_SAE),
        training=TrainingConfig(
            l1_coefficient=0.3,
            lr=3e-3,
            num_tokens=BATCH * (STEPS + 2),
            batch_size=BATCH,
            precision="float32",
            sparse_step=sparse_step,
            log_every=5,
        ),
        resampling=ResamplingConfig(steps=(14,), num_tokens=2 * BATCH),
    )


def _batches(first_token: int) -> Iterator[Tensor]:
    for i in range(first_token // BATCH, STEPS + 2):
        yield torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(i))


@pytest.fixture(autouse=True)
def triton_steps(monkeypatch):
    monkeypatch.setattr(
        state, "sparse_path", lambda sae, device: SparsePath(TritonStep(), SOON, fused_update, check_first=True)
    )


def _train(config: TrialConfig, folder: Path | None, stop_at: int | None = None):
    asked = iter(range(1, 10**6))
    return train(
        config,
        plan=plan_trial(config, d_in=D_IN),
        batches=_batches,
        report=lambda row: None,
        checkpoint_dir=folder,
        device=DEVICE,
        should_stop=lambda: stop_at is not None and next(asked) == stop_at,
    )


def test_it_becomes_sparse_and_a_resume_anywhere_gives_the_same_bits(tmp_path: Path) -> None:
    config = _config(sparse_step=True)
    trainer, paths = Trainer(config, plan_trial(config, d_in=D_IN), device=DEVICE), []
    for batch in list(_batches(0))[:STEPS]:
        paths.append(trainer.path)
        trainer.train_step(batch)
    assert trainer.notes == []
    assert paths[0] == "dense"
    assert paths[-1] == "sparse"
    undisturbed = _train(config, None).sae.state_dict()
    for cut in (paths.index("sparse"), paths.index("sparse") + 1, STEPS - 3):
        folder = tmp_path / str(cut)
        assert _train(config, folder, stop_at=cut).outcome == "interrupted"
        resumed = _train(config, folder).sae.state_dict()
        for name, tensor in undisturbed.items():
            assert torch.equal(resumed[name], tensor), (cut, name)


def test_it_ends_where_the_dense_training_ends() -> None:
    sparse, dense = (_train(_config(sparse_step=wanted), None).sae for wanted in (True, False))
    for name, tensor in sparse.state_dict().items():
        torch.testing.assert_close(tensor, dense.state_dict()[name], rtol=1e-3, atol=1e-3)
