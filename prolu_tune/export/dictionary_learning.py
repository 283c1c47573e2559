"""A folder that dictionary_learning 0.1 reads with `load_dictionary`: `ae.pt` and `config.json`.

Its autoencoders know no per-token normalisation, and a scale per token cannot be folded into weights: such an
autoencoder is refused, unless whoever uses it normalises the tokens. Its `JumpReluAutoEncoder` does not subtract
`b_dec` before encoding, so that part moves into `b_enc`. It counts blocks by their outputs: `hook_resid_pre` of block L
is its layer L - 1.
"""

import io
import json
import re
from pathlib import Path

import torch
from torch import Tensor

from prolu_tune.durable import replace_file
from prolu_tune.errors import InputError
from prolu_tune.export.source import TrainedSae
from prolu_tune.sae.model import SparseAutoencoder

CONFIG_NAME = "config.json"
TENSORS_NAME = "ae.pt"
SUBMODULES = {"hook_resid_post": "resid_post", "hook_mlp_out": "mlp_out", "hook_attn_out": "attn_out"}
"""Its word for a block's output, by the last part of our hook name."""


def write(trained: TrainedSae, folder: Path, *, normalized_inputs: bool = False) -> None:
    """Writes `ae.pt` and `config.json` into an existing folder.

    `ae.pt` is a pickle because that is what the other tool reads; it holds a plain dictionary of tensors, which
    `torch.load` takes with `weights_only=True`, its default.

    Raises:
        InputError: if the format cannot express the autoencoder; says what and why.
        OSError: if the files cannot be written.
    """
    document = config(trained, normalized_inputs=normalized_inputs)
    content = io.BytesIO()
    torch.save(tensors(trained.sae), content)
    replace_file(folder / TENSORS_NAME, [content.getbuffer()])
    text = json.dumps(document, indent=2, allow_nan=False, sort_keys=True) + "\n"
    replace_file(folder / CONFIG_NAME, [text.encode()])


def tensors(sae: SparseAutoencoder) -> dict[str, Tensor]:
    """Returns the state dictionary of its `AutoEncoder` (ReLU) or `JumpReluAutoEncoder` (ProLU).

    Raises:
        InputError: if its loader would rescale the latents because the decoder's rows are not of norm 1.
    """
    W_enc, W_dec = sae.W_enc.detach(), sae.W_dec.detach()
    b_enc, b_dec = sae.b_enc.detach(), sae.b_dec.detach()
    if sae.config.nonlinearity == "relu":
        norms = W_dec.norm(dim=1)
        if not torch.allclose(norms, torch.ones_like(norms)):
            worst = norms[(norms - 1).abs().argmax()].item()
            raise InputError(
                f"dictionary_learning's loader normalises decoder rows and rescales the latents with them, and one row here "
                f"has norm {worst:.4g} instead of 1; export with --format saelens"
            )
        return {
            "bias": b_dec.clone(),
            "encoder.weight": W_enc.T.contiguous(),
            "encoder.bias": b_enc.clone(),
            "decoder.weight": W_dec.T.contiguous(),
        }
    # In float64, so that the fold costs one rounding and not d_in of them.
    folded = -(b_dec.double() @ W_enc.double())
    return {
        "W_enc": W_enc.clone(),
        "b_enc": folded.float(),
        "W_dec": W_dec.clone(),
        "b_dec": b_dec.clone(),
        "threshold": torch.relu(-b_enc),
    }


def config(trained: TrainedSae, *, normalized_inputs: bool = False) -> dict[str, object]:
    """Returns the content of `config.json`: sections `trainer` and `buffer` as its own, and `prolu_tune` beside them.

    Raises:
        InputError: if the format cannot express the normalisation or the hook.
    """
    sae, trial = trained.sae, trained.config
    if sae.config.normalization == "per_token" and not normalized_inputs:
        raise InputError(
            "sae.normalization is per_token: every token is rescaled by its own norm, which dictionary_learning has no place "
            "for and which cannot be folded into weights; export with --format saelens, or add --normalized-inputs and rescale "
            "every token to norm sqrt(d_in) before the autoencoder sees it"
        )
    if sae.config.normalization == "none" and normalized_inputs:
        raise InputError("--normalized-inputs has no effect: this autoencoder was trained on tokens as they are; leave it out")
    layer, submodule = locate(trial.activations.hook_name)
    return {
        "trainer": {
            "dict_class": "AutoEncoder" if sae.config.nonlinearity == "relu" else "JumpReluAutoEncoder",
            "trainer_class": "prolu_tune",
            "activation_dim": sae.d_in,
            "dict_size": sae.d_sae,
            "lr": trial.training.lr,
            "l1_penalty": trial.training.l1_coefficient,
            "steps": int(trained.metrics.get("steps") or trial.training.num_tokens // trial.training.batch_size),
            "seed": trial.seed,
            "device": "cpu",
            "layer": layer,
            "submodule_name": f"{submodule}_layer_{layer}",
            "lm_name": trained.model_name,
            "wandb_name": f"{trial.sae.architecture} c={trial.training.l1_coefficient:.4g} s{trial.seed}",
        },
        "buffer": {
            "d_submodule": sae.d_in,
            "io": "out",
            "ctx_len": trial.activations.context_length,
            "out_batch_size": trial.training.batch_size,
            "device": "cpu",
        },
        "prolu_tune": {
            **trained.provenance(),
            "input": "each token rescaled to L2 norm sqrt(d_in)" if normalized_inputs else "tokens as they are",
            "hook_name": trial.activations.hook_name,
            "compatibility_mode": trial.activations.compatibility_mode,
        },
    }


def locate(hook_name: str) -> tuple[int, str]:
    """Returns dictionary_learning's (layer, submodule) of a TransformerLens hook.

    Raises:
        InputError: if it is not the output of a block, of its MLP or of its attention.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(hook_\w+)", hook_name)
    if match and match[2] in SUBMODULES:
        return int(match[1]), SUBMODULES[match[2]]
    if match and match[2] == "hook_resid_pre" and int(match[1]) > 0:
        return int(match[1]) - 1, "resid_post"
    raise InputError(
        f"activations.hook_name is {hook_name}, but dictionary_learning names a place by the layer whose output it is "
        "(the residual stream, an MLP or an attention block); export with --format saelens"
    )
