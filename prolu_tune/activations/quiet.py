"""What torch, transformers, datasets and TransformerLens would print, silenced in one place; and their network, shut."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

QUIET_ENVIRONMENT: dict[str, str] = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    # After a fork the tokenizers warn at each use unless told; they run in threads of their own either way.
    "TOKENIZERS_PARALLELISM": "true",
}
"""Set before the libraries are first imported, never against what the person has set."""

KNOWN_WARNINGS: tuple[str, ...] = (
    r"`torch_dtype` is deprecated! Use `dtype` instead!",
    r"`clean_up_tokenization_spaces` was not set\. It will be set to `True` by default\.",
    r"torch\.jit\.script is deprecated\. Please switch to torch\.compile or torch\.export\.",
    r"'has_mps' is deprecated, please use 'torch\.backends\.mps\.is_built\(\)'",
)
"""Harmless in our use; matched from the start of the message."""

QUIET_LOGGERS: tuple[str, ...] = ("transformers", "datasets", "huggingface_hub", "transformer_lens", "httpx", "fsspec")


def quiet_libraries() -> None:
    """Silences known warnings, notes and progress bars of the model libraries; call it before importing them."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for text in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=text)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet_loading(*, offline: bool) -> Iterator[None]:
    """Transformers without progress bars inside the block and, if `offline`, the hub client without network."""
    quiet_libraries()
    import huggingface_hub.constants
    import transformers.utils.logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    # The library asks this constant at each call; the environment variable is read at its first import only.
    huggingface_hub.constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before
