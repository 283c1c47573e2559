"""One training step of dictionary_learning, its standard trainer; runs in the other libraries' environment."""

from importlib.metadata import version
from typing import Any

import torch
from dictionary_learning.trainers.standard import StandardTrainer  # pyright: ignore[reportMissingImports]  # peers' environment
from serve import given, serve, timed  # pyright: ignore[reportMissingImports]  # beside this script, which is run as a file


def main() -> None:
    """Answers {"batch": i, "clock": ...} with {"seconds": ...} of one step."""
    data, batches = given()
    d_in, d_sae = data["W_enc"].shape
    trainer = StandardTrainer(
        steps=10**6,
        activation_dim=d_in,
        dict_size=d_sae,
        layer=0,
        lm_name="none",
        # 0 costs what any other does, and keeps L0 where it is.
        lr=0.0,
        l1_penalty=1e-3,
        warmup_steps=0,
        sparsity_warmup_steps=None,
        device="cpu",
    )
    autoencoder = trainer.ae
    with torch.no_grad():
        autoencoder.encoder.weight.copy_(data["W_enc"].T)
        autoencoder.decoder.weight.copy_(data["W_dec"].T)
        autoencoder.encoder.bias.copy_(data["b_enc"])
        autoencoder.bias.copy_(data["b_dec"])
    steps = 0

    def step(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal steps
        x = batches[request["batch"]]
        seconds = timed(lambda: trainer.update(steps, x), request["clock"])
        steps += 1
        with torch.no_grad():
            l0 = float((autoencoder.encode(x[:256]) > 0).sum(1).float().mean())
        return {"seconds": seconds, "l0": l0}

    serve({"version": version("dictionary-learning"), "torch": torch.__version__}, step)


if __name__ == "__main__":
    main()
