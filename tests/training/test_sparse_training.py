"""A training that changes from dense to sparse steps on its way."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prolu_tune.config.resolve import TrialPlan, plan_trial
from prolu_tune.config.trial import ResamplingConfig, SaeConfig, TrainingConfig, TrialConfig
from prolu_tune.training.state import Trainer
from prolu_tune.training.trainer import TrainingResult, train

D_IN, BATCH, STEPS = 24, 512, 60


def _config(*, sparse_step: bool = True, nonlinearity: str = "prolu_ste") -> TrialConfig:
    return TrialConfig(
        sae=SaeConfig(nonlinearity=nonlinearity, d_sae=2048),
        training=TrainingConfig(
            l1_coefficient=30, lr=1e-2, num_tokens=BATCH * STEPS, batch_size=BATCH, sparse_step=sparse_step, log_every=5
        ),
        resampling=ResamplingConfig(steps=()),
    )


def _batches(first_token: int) -> Iterator[Tensor]:
    for i in range(first_token // BATCH, STEPS):
        yield torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(i))


def _train(config: TrialConfig, plan: TrialPlan, folder: Path | None, stop_at: int | None = None) -> TrainingResult:
    asked = iter(range(1, 10**6))

    def should_stop() -> bool:
        return stop_at is not None and next(asked) == stop_at

    return train(
        config,
        plan=plan,
        batches=_batches,
        report=lambda row: None,
        checkpoint_dir=folder,
        device="cpu",
        should_stop=should_stop,
    )


def test_it_becomes_sparse_and_a_resume_anywhere_gives_the_same_bits(tmp_path: Path) -> None:
    config = _config()
    plan = plan_trial(config, d_in=D_IN)
    paths = []
    trainer = Trainer(config, plan)
    for batch in _batches(0):
        paths.append(trainer.path)
        trainer.train_step(batch)
    assert paths[0] == "dense"
    assert paths[-1] == "sparse"
    switch = paths.index("sparse")
    undisturbed = _train(config, plan, None).sae.state_dict()
    for cut in (switch - 1, switch, switch + 1, STEPS - 5):
        folder = tmp_path / str(cut)
        assert _train(config, plan, folder, stop_at=cut).outcome == "interrupted"
        resumed = _train(config, plan, folder).sae.state_dict()
        for name, tensor in undisturbed.items():
            assert torch.equal(resumed[name], tensor), (cut, name)


@pytest.mark.parametrize("nonlinearity", ["relu", "prolu_relu", "prolu_ste"])
def test_it_ends_where_the_dense_training_ends(nonlinearity: str) -> None:
    results = []
    for sparse_step in (True, False):
        config = _config(sparse_step=sparse_step, nonlinearity=nonlinearity)
        results.append(_train(config, plan_trial(config, d_in=D_IN), None).sae)
    x = torch.randn(256, D_IN, generator=torch.Generator().manual_seed(99))
    sparse, dense = results
    with torch.no_grad():
        assert torch.allclose(sparse(x), dense(x), atol=2e-3)
        gates = (sparse.encode(x) > 0) == (dense.encode(x) > 0)
    assert gates.float().mean() > 0.999
