"""The flags of measurements that need a language model, and the source of its activations with a cache that starts empty."""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

from prolu_tune.activations.source import ActivationSource
from prolu_tune.bench.options import Options, make_parser
from prolu_tune.config.trial import ActivationConfig


class SourceOptions(Options):
    """The shared flags and those of model, hook and data."""

    model: str
    hook: str
    dataset: str
    tokens: int


def source_parser(name: str, description: str | None, *, tokens: int, **defaults: float) -> argparse.ArgumentParser:
    """Returns a parser of the shared flags and of model, hook, data and tokens."""
    made = make_parser(name, description, threads=2, **defaults)
    made.add_argument("--model", default="embedded", help="embedded, or a folder in Hugging Face format")
    made.add_argument("--hook", default="blocks.2.hook_resid_pre")
    made.add_argument("--dataset", default="embedded", help="embedded, or a file of text")
    made.add_argument("--tokens", type=int, default=tokens, help="tokens of the data to use")
    return made


def activation_config(options: SourceOptions) -> ActivationConfig:
    """Returns the configuration of the activations that the flags ask for."""
    return ActivationConfig(
        model=options.model,
        hook_name=options.hook,
        dataset=options.dataset,
        lm_threads=options.threads,
        chunk_tokens=2**15,
        epochs=100,
    )


@contextlib.contextmanager
def fresh_source(options: SourceOptions) -> Iterator[ActivationSource]:
    """Gives a source whose cache is empty and goes when the block ends; the language model is loaded."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        source = ActivationSource(activation_config(options), cache_dir=Path(folder), device=options.device)
        _ = source.language_model
        yield source
