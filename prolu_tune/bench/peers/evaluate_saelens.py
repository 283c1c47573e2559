"""SAELens's own losses of several autoencoders, three passes each; runs in the other libraries' environment.

`get_recons_loss` is what its `run_evals` spends its time in; sparsity and variance, for which that makes another pass,
are left out.
"""

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from sae_lens import StandardSAE, StandardSAEConfig  # pyright: ignore[reportMissingImports]  # there in the peers' environment only
from sae_lens.evals import get_recons_loss  # pyright: ignore[reportMissingImports]  # likewise
from sae_lens.training.activation_scaler import ActivationScaler  # pyright: ignore[reportMissingImports]  # likewise
from safetensors.torch import load_file
from serve import serve, timed  # pyright: ignore[reportMissingImports]  # beside this script, which is run as a file
from transformer_lens.model_bridge import TransformerBridge


def main() -> None:
    """Answers any request with {"seconds": ..., "loss": ...} of evaluating all autoencoders."""
    parser = argparse.ArgumentParser()
    for name in ("data", "model", "hook"):
        parser.add_argument(name)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_file(options.data)
    model = TransformerBridge.boot_transformers(options.model, device="cpu")
    model.enable_compatibility_mode()
    torch.set_num_threads(options.threads)
    saes = [_autoencoder(data, str(i), options.hook) for i in range(sum(name.endswith(".W_enc") for name in data))]

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        losses: list[float] = []
        seconds = timed(
            lambda: losses.extend(_loss(sae, model, data["rows"].long().split(options.rows)) for sae in saes), request["clock"]
        )
        return {"seconds": seconds, "loss": losses[0]}

    serve({"version": version("sae-lens")}, answer)


def _loss(sae: Any, model: Any, batches: Sequence[torch.Tensor]) -> float:
    parts = [get_recons_loss(sae, model, ActivationScaler(), rows, compute_kl=False, compute_ce_loss=True) for rows in batches]
    return torch.cat([part["ce_loss_with_sae"] for part in parts]).mean().item()


def _autoencoder(data: dict[str, torch.Tensor], prefix: str, hook: str) -> Any:
    d_in, d_sae = data[f"{prefix}.W_enc"].shape
    config = StandardSAEConfig(
        d_in=d_in, d_sae=d_sae, device="cpu", apply_b_dec_to_input=True, normalize_activations="constant_norm_rescale"
    )
    config.metadata.hook_name = hook
    sae = StandardSAE(config)
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            getattr(sae, name).copy_(data[f"{prefix}.{name}"])
    return sae


if __name__ == "__main__":
    main()
