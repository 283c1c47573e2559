"""One training step of SAELens, its own trainer on its standard autoencoder; runs in the other libraries' environment."""

from importlib.metadata import version
from typing import Any

import torch
from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig  # pyright: ignore[reportMissingImports]
from sae_lens.config import SAETrainerConfig  # pyright: ignore[reportMissingImports]  # there in the peers' environment only
from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]  # likewise
from serve import given, serve, timed  # pyright: ignore[reportMissingImports]  # beside this script, which is run as a file


def main() -> None:
    """Answers {"batch": i, "clock": ...} with {"seconds": ...} of one step."""
    data, batches = given()
    d_in, d_sae = data["W_enc"].shape
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=d_in, d_sae=d_sae, l1_coefficient=1e-3, device="cpu"))
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            getattr(sae, name).copy_(data[name])
    # A learning rate of 0 costs what any other does, and keeps L0 where it is.
    config = SAETrainerConfig(total_training_samples=10**9, train_batch_size_samples=len(batches[0]), lr=0.0, lr_end=0.0)
    trainer = SAETrainer(config, sae, data_provider=iter(()))

    def step(request: dict[str, Any]) -> dict[str, Any]:
        seconds = timed(lambda: trainer.step(batches[request["batch"]]), request["clock"])
        trainer.n_training_steps += 1
        return {"seconds": seconds, "l0": float(trainer.feature_sparsity.sum())}

    serve({"version": version("sae-lens"), "torch": torch.__version__}, step)


if __name__ == "__main__":
    main()
