import itertools

import pytest
import torch

from prolu_tune.config.names import NONLINEARITIES, PENALTIES
from prolu_tune.config.resolve import plan_trial
from prolu_tune.config.trial import ResamplingConfig, SaeConfig, TrainingConfig, TrialConfig
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.training import state
from prolu_tune.training.choice import CPU, Crossover
from prolu_tune.training.optimizer import update
from prolu_tune.training.paths import SparsePath, complaint_about, sparse_path
from prolu_tune.training.sparse import THRESHOLDS, SparseStep
from prolu_tune.training.state import Trainer

ALWAYS = Crossover(density=1.0, fixed_columns=0, every=1)


def test_every_nonlinearity_has_a_sparse_step_on_this_cpu():
    assert THRESHOLDS.keys() == set(NONLINEARITIES)
    for name in NONLINEARITIES:
        path = sparse_path(SparseAutoencoder(SaeConfig(nonlinearity=name), 4, 8), torch.device("cpu"))
        if torch.backends.mkl.is_available():
            assert path is not None
            assert isinstance(path.gradients, SparseStep)
            assert path.crossover == CPU
            assert path.update is update
        else:
            assert path is None


class _Broken(SparseStep):
    """Right but for one parameter's gradient, which is 1 % too long."""

    def __init__(self, name):
        super().__init__()
        self.name = name

    def __call__(self, sae, x, *, l1_coefficient):
        stats = super().__call__(sae, x, l1_coefficient=l1_coefficient)
        sae.get_parameter(self.name).grad.mul_(1.01)
        return stats


class _Failing(SparseStep):
    def __call__(self, sae, x, *, l1_coefficient):
        raise RuntimeError("no kernel image")


def _lame(sae, adam):
    """An update that forgets the decoder."""
    kept = sae.W_dec.detach().clone()
    update(sae, adam)
    sae.W_dec.data.copy_(kept)


def _sae(nonlinearity="relu", penalty="l1"):
    return SparseAutoencoder(SaeConfig(nonlinearity=nonlinearity, penalty=penalty), 12, 300)


@pytest.mark.parametrize(("nonlinearity", "penalty"), list(itertools.product(NONLINEARITIES, PENALTIES)))
def test_a_right_step_meets_no_complaint_and_leaves_the_weights_alone(nonlinearity, penalty):
    sae = _sae(nonlinearity, penalty)
    before = {name: parameter.clone() for name, parameter in sae.named_parameters()}
    assert complaint_about(SparsePath(SparseStep(), ALWAYS), sae, TrainingConfig()) == ""
    for name, parameter in sae.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_a_wrong_gradient_is_named(name):
    assert f"gradient of {name}" in complaint_about(SparsePath(_Broken(name), ALWAYS), _sae(), TrainingConfig())


def test_the_check_reaches_even_the_smallest_autoencoder():
    sae = SparseAutoencoder(SaeConfig(), 2, 3)
    assert "gradient of W_enc" in complaint_about(SparsePath(_Broken("W_enc"), ALWAYS), sae, TrainingConfig())


def test_a_wrong_update_and_an_error_are_named():
    assert "update of W_dec" in complaint_about(SparsePath(SparseStep(), ALWAYS, _lame), _sae(), TrainingConfig())
    assert "RuntimeError: no kernel image" in complaint_about(SparsePath(_Failing(), ALWAYS), _sae(), TrainingConfig())


@pytest.mark.parametrize("gradients", [SparseStep(), _Failing()])
def test_a_trial_trains_densely_and_says_so_where_the_sparse_step_cannot_be_trusted(monkeypatch, gradients):
    path = SparsePath(gradients, ALWAYS, check_first=True)
    monkeypatch.setattr(state, "sparse_path", lambda sae, device: path)
    training = TrainingConfig(num_tokens=320, batch_size=32)
    config = TrialConfig(sae=SaeConfig(d_sae=300), training=training, resampling=ResamplingConfig(steps=()))
    trainer = Trainer(config, plan_trial(config, d_in=12))
    for seed in range(2):
        trainer.train_step(torch.randn(32, 12, generator=torch.Generator().manual_seed(seed)))
    if isinstance(gradients, _Failing):
        assert trainer.path == "dense"
        assert "no kernel image" in trainer.notes[0]
    else:
        assert trainer.path == "sparse"
        assert trainer.notes == []
