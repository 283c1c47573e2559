import torch

from prolu_tune.config.names import NONLINEARITIES
from prolu_tune.config.trial import SaeConfig
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.training.choice import CPU
from prolu_tune.training.paths import sparse_path
from prolu_tune.training.sparse import THRESHOLDS, SparseStep


def test_every_nonlinearity_has_a_sparse_step_on_this_cpu():
    assert THRESHOLDS.keys() == set(NONLINEARITIES)
    for name in NONLINEARITIES:
        path = sparse_path(SparseAutoencoder(SaeConfig(nonlinearity=name), 4, 8), torch.device("cpu"))
        if torch.backends.mkl.is_available():
            assert path is not None
            assert isinstance(path.gradients, SparseStep)
            assert path.crossover == CPU
        else:
            assert path is None
