"""The sparse autoencoder, its gates, its penalties and its folder on disk; needs torch alone."""

from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.sae.nonlinearities import prolu_relu, prolu_ste, relu

__all__ = ["SparseAutoencoder", "prolu_relu", "prolu_ste", "relu"]
