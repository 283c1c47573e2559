"""A folder that SAELens 6 reads with `SAE.load_from_disk` and, on the hub, with `SAE.from_pretrained`.

ProLU at inference is JumpReLU without encoder bias: `pre + b > 0 and pre > 0` is `pre > max(-b, 0)`, in floating point
too. `constant_norm_rescale` is the per-token normalisation to norm sqrt(d_in).
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from prolu_tune.durable import replace_file
from prolu_tune.export.source import TrainedSae
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.sae.tensor_file import write_tensors

CONFIG_NAME = "cfg.json"
TENSORS_NAME = "sae_weights.safetensors"
SAELENS_VERSION = "6.54.12"
"""The version whose format this is, and against which the round trip is tested. Below 6.0.0 its loader drops metadata."""


def write(trained: TrainedSae, folder: Path) -> None:
    """Writes `cfg.json` and `sae_weights.safetensors` into an existing folder.

    Raises:
        OSError: if they cannot be written.
    """
    write_tensors(folder / TENSORS_NAME, tensors(trained.sae), {"format": "pt"})
    text = json.dumps(config(trained), indent=2, allow_nan=False, sort_keys=True) + "\n"
    replace_file(folder / CONFIG_NAME, [text.encode()])


def tensors(sae: SparseAutoencoder) -> dict[str, Tensor]:
    """Returns the tensors by SAELens's names; `threshold` only for gates that are not ReLU."""
    b_enc = sae.b_enc.detach()
    shared = {"W_enc": sae.W_enc.detach(), "W_dec": sae.W_dec.detach(), "b_dec": sae.b_dec.detach()}
    if sae.config.nonlinearity == "relu":
        return {**shared, "b_enc": b_enc}
    return {**shared, "b_enc": torch.zeros_like(b_enc), "threshold": torch.relu(-b_enc)}


def config(trained: TrainedSae) -> dict[str, object]:
    """Returns the content of `cfg.json`."""
    sae, activations = trained.sae, trained.config.activations
    return {
        "architecture": "standard" if sae.config.nonlinearity == "relu" else "jumprelu",
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "constant_norm_rescale" if sae.config.normalization == "per_token" else "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "sae_lens_training_version": None,
            "model_name": trained.model_name,
            "model_class_name": "HookedTransformer",
            "model_from_pretrained_kwargs": _loading_arguments(compatibility_mode=activations.compatibility_mode),
            "hook_name": activations.hook_name,
            "hook_head_index": None,
            "context_size": activations.context_length,
            "prepend_bos": activations.overwrite_bos,
            "seqpos_slice": [None] if activations.train_on_bos else [1, None],
            "exclude_special_tokens": False,
            "dataset_path": trained.dataset_name,
            "prolu_tune": trained.provenance(),
        },
    }


def _loading_arguments(*, compatibility_mode: bool) -> dict[str, bool]:
    """Returns what SAELens passes to `HookedTransformer.from_pretrained_no_processing`, whose own defaults are all off."""
    if not compatibility_mode:
        return {}
    return {"fold_ln": True, "center_writing_weights": True, "center_unembed": True, "fold_value_biases": True}
