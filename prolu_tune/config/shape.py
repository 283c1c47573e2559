"""What a language model's configuration file tells without loading the model: layers and widths."""

import difflib
import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError

EMBEDDED_MODEL = Path(__file__).parent.parent / "embedded" / "model"
DATA_SUFFIXES = (".parquet", ".jsonl", ".json", ".txt")
RESIDUAL_HOOKS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_embed")
"""Hooks that are as wide as the residual stream; the last part of the name."""
OTHER_BLOCK_HOOKS = ("hook_in", "hook_out", "hook_attn_in", "hook_mlp_in", "hook_q_input", "hook_k_input", "hook_v_input")
"""Further hooks that TransformerLens may have directly in a block; the model is asked for their width."""
MAX_CONFIG_BYTES = 1_000_000
GPT2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}
"""The post's model, so that its experiments can be planned without a network."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a transformer, as far as its configuration file names them."""

    d_model: int
    num_layers: int
    d_mlp: int
    vocab_size: int
    tied: bool

    @property
    def num_parameters(self) -> int:
        """Weights, to within the differences between families: attention 4 d^2, a block's MLP 2 or 3 d d_mlp."""
        block = 4 * self.d_model**2 + 2 * self.d_model * self.d_mlp
        return self.num_layers * block + (1 if self.tied else 2) * self.vocab_size * self.d_model


def model_shape(activations: ActivationConfig) -> ModelShape | None:
    """Returns the shape of the model, or None when only the hub knows it.

    Raises:
        InputError: if the model is a folder that does not exist or holds no usable config.json.
    """
    if activations.model == "embedded":
        return _read(EMBEDDED_MODEL / "config.json") if (EMBEDDED_MODEL / "config.json").is_file() else None
    folder = _local_path("activations.model", activations.model)
    if _there(folder, Path.is_dir):
        if not (folder / "config.json").is_file():
            raise InputError(f"activations.model: {folder} holds no config.json; give a folder in Hugging Face format")
        return _read(folder / "config.json")
    if _is_path(activations.model):
        raise InputError(
            f"activations.model: no such folder {folder}; give `embedded`, a Hugging Face name or an existing folder"
        )
    if activations.model in ("gpt2", "openai-community/gpt2"):
        return _shape(GPT2)
    return None


def hub_shape(activations: ActivationConfig) -> ModelShape | None:
    """Returns the shape of a hub model from its config.json alone, cached or fetched; None when it cannot be had."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        path = hf_hub_download(
            activations.model,
            "config.json",
            revision=activations.model_revision,
            local_files_only=not _reachable(constants.ENDPOINT),
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None
    return _read(Path(path))


def _reachable(endpoint: str) -> bool:
    """Returns whether the hub's name resolves; without this the hub's client retries for half a minute offline."""
    from urllib.request import getproxies

    if getproxies():
        return True
    try:
        return bool(socket.getaddrinfo(urlsplit(endpoint).hostname, 443))
    except OSError:
        return False


def check_dataset_exists(activations: ActivationConfig) -> None:
    """Checks that a data set given as a path is there.

    Raises:
        InputError: if it is not.
    """
    name = activations.dataset
    path = _local_path("activations.dataset", name)
    if name != "embedded" and not _there(path, Path.exists) and (_is_path(name) or path.suffix in DATA_SUFFIXES):
        raise InputError(
            f"activations.dataset: no such file or folder {path}; give `embedded`, a Hugging Face name or an existing "
            "file or folder of Parquet, JSON lines or text"
        )


def hook_width(hook_name: str, shape: ModelShape) -> int | None:
    """Returns the width of the activation at a hook, or None when the model has to be asked.

    Raises:
        InputError: if the hook's block is beyond the model's last one.
    """
    block = re.match(r"blocks\.(\d+)\.", hook_name)
    if block and int(block[1]) >= shape.num_layers:
        near = f"blocks.{shape.num_layers - 1}.{hook_name[block.end() :]}"
        raise InputError(
            f"activations.hook_name: {hook_name} is beyond the model's {shape.num_layers} blocks; did you mean {near}?"
        )
    last = hook_name.rpartition(".")[2]
    if last in RESIDUAL_HOOKS:
        return shape.d_model
    if block and block.end() + len(last) == len(hook_name) and last not in OTHER_BLOCK_HOOKS:
        for close in difflib.get_close_matches(last, RESIDUAL_HOOKS, n=1, cutoff=0.7):
            raise InputError(f"activations.hook_name: the model has no hook {hook_name}; did you mean {block[0]}{close}?")
    return None


def _local_path(key: str, name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise InputError(f"{key}: {name} begins with a user who is not known here; write the folder out") from None


def _there(path: Path, check: Callable[[Path], bool]) -> bool:
    """Returns whether a path is there; one that no file system knows (too long, a zero byte) is not."""
    try:
        return check(path)
    except (OSError, ValueError):
        return False


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or name.count("/") > 1


def _read(path: Path) -> ModelShape:
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"activations.model: {path} cannot be read as JSON ({error}); give a folder in Hugging Face format"
        ) from None
    return _shape(data, source=str(path))


def _shape(data: Any, *, source: str = "config.json") -> ModelShape:
    data = data if isinstance(data, dict) else {}
    data = data["text_config"] if isinstance(data.get("text_config"), dict) else data

    def first(*names: str) -> int | None:
        # type() and not isinstance: JSON's true is an int to Python. The limit keeps products of sizes printable.
        return next((data[name] for name in names if type(data.get(name)) is int and 0 < data[name] < 2**31), None)

    d_model, num_layers = first("hidden_size", "n_embd", "d_model"), first("num_hidden_layers", "n_layer", "num_layers")
    if d_model is None or num_layers is None:
        raise InputError(f"activations.model: {source} names neither hidden_size nor n_embd; give a transformer language model")
    return ModelShape(
        d_model=d_model,
        num_layers=num_layers,
        d_mlp=first("intermediate_size", "n_inner", "ffn_dim") or 4 * d_model,
        vocab_size=first("vocab_size") or 0,
        tied=bool(data.get("tie_word_embeddings", True)),
    )
