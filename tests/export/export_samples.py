"""Autoencoders to export, with weights as different from their start as training makes them, and tokens to read."""

from pathlib import Path

import numpy as np
import torch

from prolu_tune.config.names import NONLINEARITIES, PENALTIES
from prolu_tune.config.trial import ActivationConfig, SaeConfig, TrainingConfig, TrialConfig
from prolu_tune.sae import SparseAutoencoder
from prolu_tune.sae.folder import save_sae

ARCHITECTURES = [(nonlinearity, penalty) for nonlinearity in NONLINEARITIES for penalty in PENALTIES]
D_IN, D_SAE = 24, 96
METRICS = {"l0": 12.5, "ce_degradation": 0.25, "mse": 0.125, "fvu": float("nan"), "tokens": 4096.0, "steps": 4.0}


def make_sae(nonlinearity: str, *, normalization: str = "per_token", seed: int = 0) -> SparseAutoencoder:
    """Returns an autoencoder with biases of both signs, unit decoder rows and about a quarter of its gates open."""
    generator = torch.Generator().manual_seed(seed)
    config = SaeConfig.model_validate({"nonlinearity": nonlinearity, "normalization": normalization, "d_sae": D_SAE})
    sae = SparseAutoencoder(config, D_IN, D_SAE, generator=generator)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(D_IN, D_SAE, generator=generator) * 0.3)
        sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(D_SAE, D_IN, generator=generator), dim=1))
        sae.b_enc.copy_(torch.randn(D_SAE, generator=generator) - 0.7)
        sae.b_enc[0] = 0.0
        sae.b_dec.copy_(torch.randn(D_IN, generator=generator) * 0.5)
    return sae


def save_sample(
    folder: Path,
    nonlinearity: str,
    penalty: str = "l1",
    *,
    normalization: str = "per_token",
    hook_name: str = "blocks.6.hook_resid_pre",
) -> SparseAutoencoder:
    """Saves an autoencoder as a sweep does and returns it."""
    sae = make_sae(nonlinearity, normalization=normalization)
    config = TrialConfig(
        seed=3,
        sae=SaeConfig.model_validate(sae.config.model_dump() | {"penalty": penalty}),
        training=TrainingConfig(l1_coefficient=0.32, num_tokens=4096, batch_size=1024, lr=3e-3),
        activations=ActivationConfig(model="gpt2", hook_name=hook_name, dataset="some/text", context_length=64),
    )
    save_sae(sae, folder, config=config.model_dump(mode="json"), versions={"torch": "2.13.0"}, metrics=METRICS)
    return sae


def tokens(rows: int = 400) -> np.ndarray:
    """Returns raw activations whose norms differ by a factor of a hundred."""
    generator = np.random.default_rng(1)
    x = generator.standard_normal((rows, D_IN)) * np.exp(generator.uniform(-1.5, 3.0, (rows, 1)))
    return x.astype(np.float32)
