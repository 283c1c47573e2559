"""SAELens's runner for several autoencoders at once, on rows of token ids; runs in the other libraries' environment."""

import argparse
import json
import os
import time
from importlib.metadata import version

import numpy as np
import torch

os.environ |= {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}

from datasets import Dataset
from sae_lens import LoggingConfig, StandardTrainingSAEConfig  # pyright: ignore[reportMissingImports]  # peers' environment only
from sae_lens.multi_sae_training_runner import (  # pyright: ignore[reportMissingImports]  # likewise
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
)
from transformer_lens.model_bridge import TransformerBridge


def main() -> None:
    """Prints {"seconds": of training, the language model included}; writes the autoencoders into the last argument."""
    parser = argparse.ArgumentParser()
    for name in ("model", "hook", "rows", "out"):
        parser.add_argument(name)
    for name in ("d-in", "d-sae", "batch", "tokens", "saes", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = np.load(options.rows)
    model = TransformerBridge.boot_transformers(options.model, device="cpu")
    model.enable_compatibility_mode()
    config = MultiSAETrainingRunnerConfig(
        saes={
            f"c{i}": StandardTrainingSAEConfig(d_in=options.d_in, d_sae=options.d_sae, l1_coefficient=float(coefficient))
            for i, coefficient in enumerate(np.geomspace(1, 8, options.saes))
        },
        hook_names=options.hook,
        model_name="given",
        context_size=rows.shape[1],
        n_batches_in_buffer=256,
        training_tokens=options.tokens,
        store_batch_size_prompts=32,
        train_batch_size_tokens=options.batch,
        prepend_bos=False,
        sequence_separator_token=None,
        lr=1e-3,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=options.out,
    )
    dataset = Dataset.from_dict({"input_ids": rows.tolist()})
    began = time.perf_counter()
    MultiSAETrainingRunner(config, override_dataset=dataset, override_model=model).run()
    print(json.dumps({"seconds": time.perf_counter() - began, "version": version("sae-lens")}))


if __name__ == "__main__":
    main()
