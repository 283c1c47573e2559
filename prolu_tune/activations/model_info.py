"""What can be known of a language model without loading its weights, and where its files are."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prolu_tune.activations.digests import files_digest
from prolu_tune.activations.quiet import quiet_libraries, quiet_loading
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError, SurroundingsError

HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""Configuration, weights and tokenizer; never a pickle, never code."""
HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
RESIDUAL_HOOK = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|mid|post)")


@dataclass(frozen=True)
class ModelInfo:
    """A language model as its configuration describes it."""

    folder: Path
    """Files in Hugging Face format."""
    name: str
    """As the person wrote it."""
    commit: str | None
    """Git commit of a hub model, None for a folder."""
    d_model: int
    num_layers: int
    vocab_size: int
    max_context: int | None
    """Longest sequence, None where the configuration does not say."""
    bos_token_id: int | None
    """As the model's configuration has it; the tokenizer's, if there is one, takes precedence."""

    def identity(self, *, memo: Path | None) -> str:
        """Returns what tells this model's weights from others: the hub's commit, else a digest of the files."""
        if self.commit is not None:
            return f"hub:{self.name}@{self.commit}"
        return f"files:{files_digest(weight_files(self.folder), memo=memo)}"


def weight_files(folder: Path) -> list[Path]:
    """Returns the configuration and weights of a model folder, by name.

    Raises:
        InputError: if there are no safetensors weights.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise InputError(
            f"{folder} holds no *.safetensors weights; save the model with save_pretrained(folder, safe_serialization=True)"
        )
    return [folder / "config.json", *weights]


def model_folder(config: ActivationConfig) -> tuple[Path, str | None]:
    """Returns the folder of a configuration's model and, for a hub model, its commit; downloads what is missing.

    Raises:
        InputError: if there is no such folder or hub model.
        SurroundingsError: if the hub cannot be reached.
    """
    name = config.model
    path = Path(name).expanduser()
    if config.model_revision is not None and (name == "embedded" or path.exists()):
        raise InputError(f"activations.model_revision has no effect on {name}, which is local; remove it")
    if name == "embedded":
        from prolu_tune.embedded import MODEL_DIR

        return Path(MODEL_DIR), None
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"activations.model {name} is a folder without config.json; give a folder in Hugging Face format")
        return path, None
    if path.exists() or not HUB_NAME.fullmatch(name) or name.startswith("."):
        raise InputError(
            f"activations.model {name!r} is not a folder; give a folder in Hugging Face format, a hub name such as gpt2, "
            "or embedded"
        )
    return _hub_snapshot(name, config.model_revision)


def _hub_snapshot(name: str, revision: str | None) -> tuple[Path, str]:
    quiet_libraries()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=list(HUB_FILES), ignore_patterns=["*/*"])
    except LocalEntryNotFoundError as error:
        raise SurroundingsError(
            f"model {name!r} is not on this machine and the Hugging Face hub cannot be reached; "
            "check the network, or give activations.model a local folder"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        at = f" at revision {revision}" if revision else ""
        raise InputError(
            f"the Hugging Face hub has no model {name!r}{at}, or it needs a login; check activations.model and model_revision"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise SurroundingsError(f"model {name!r} cannot be downloaded ({error}); run the same command again") from error
    return Path(folder), Path(folder).name


def describe_model(config: ActivationConfig) -> ModelInfo:
    """Returns widths and limits of a configuration's model; reads no weights.

    Raises:
        InputError: if the model does not exist, cannot be understood, or does not have the hook's layer or the context.
        SurroundingsError: if the hub cannot be reached.
    """
    folder, commit = model_folder(config)
    with quiet_loading(offline=True):
        from transformers import AutoConfig

        try:
            described = AutoConfig.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"activations.model {config.model}: config.json cannot be used ({_first_line(error)}); "
                "give a model that transformers knows"
            ) from error
    text = described.get_text_config()
    info = ModelInfo(
        folder=folder,
        name=config.model,
        commit=commit,
        d_model=int(text.hidden_size),
        num_layers=int(text.num_hidden_layers),
        vocab_size=int(text.vocab_size),
        max_context=getattr(text, "max_position_embeddings", None),
        bos_token_id=_single(getattr(text, "bos_token_id", None)),
    )
    _check(config, info)
    return info


def residual_width(config: ActivationConfig, info: ModelInfo) -> int | None:
    """Returns the width of the hook where its name alone tells (the residual stream), else None."""
    return info.d_model if RESIDUAL_HOOK.fullmatch(config.hook_name) else None


def _check(config: ActivationConfig, info: ModelInfo) -> None:
    layer = re.match(r"blocks\.(\d+)\.", config.hook_name)
    if layer is not None and int(layer.group(1)) >= info.num_layers:
        raise InputError(
            f"activations.hook_name {config.hook_name}: {info.name} has {info.num_layers} layers, "
            f"blocks.0 to blocks.{info.num_layers - 1}; choose one of them"
        )
    if info.max_context is not None and config.context_length > info.max_context:
        raise InputError(
            f"activations.context_length is {config.context_length}, but {info.name} reads at most {info.max_context} tokens; "
            f"lower it to {info.max_context} or less"
        )


def load_tokenizer(info: ModelInfo) -> Any | None:
    """Returns the model folder's tokenizer, or None if it has none."""
    if not any((info.folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return None
    with quiet_loading(offline=True):
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(info.folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"the tokenizer in {info.folder} cannot be loaded ({_first_line(error)}); repair or remove it"
            ) from error


def _single(value: Any) -> int | None:
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    return None if value is None else int(value)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
