"""The formats by name, and the folder that each is written to as a whole or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

from prolu_tune.durable import replace_file, sync_folder
from prolu_tune.errors import InputError
from prolu_tune.export import card, dictionary_learning, prolu, saelens
from prolu_tune.export.source import TrainedSae, read_trained

Writer = Callable[[TrainedSae, Path], None]

FORMATS: tuple[str, ...] = ("saelens", "dictionary_learning", "prolu")
"""What `export --format` takes."""


def export_folder(
    source: Path, target: Path, *, format_name: str, normalized_inputs: bool = False, overwrite: bool = False
) -> TrainedSae:
    """Writes an autoencoder in another tool's format, with a README card, and returns what was exported.

    Args:
        source: A folder of ours, with `sae.safetensors` and `config.json`.
        target: The folder to make; its parents are made if need be.
        format_name: One of `FORMATS`.
        normalized_inputs: Leave out the per-token normalisation; whoever uses the folder then rescales every token to
            norm sqrt(d_in) first. Only for formats that cannot express it.
        overwrite: Replace a target that exists.

    Raises:
        InputError: if the source is no autoencoder, the target is taken, or the format cannot express the autoencoder.
        OSError: if it cannot be written; a target that was there is untouched.
    """
    if format_name not in FORMATS:
        raise InputError(f"{format_name!r} is not a format; choose one of {', '.join(FORMATS)}")
    if normalized_inputs and format_name != "dictionary_learning":
        raise InputError(
            f"--normalized-inputs has no effect: {format_name} expresses the per-token normalisation; leave it out"
        )
    trained = read_trained(source)
    _check_target(target, source=source, overwrite=overwrite)
    writers: dict[str, Writer] = {
        "saelens": saelens.write,
        "dictionary_learning": lambda trained, folder: dictionary_learning.write(
            trained, folder, normalized_inputs=normalized_inputs
        ),
        "prolu": prolu.write,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f"{target.name}.tmp")
    if new.exists():
        shutil.rmtree(new)
    new.mkdir()
    try:
        writers[format_name](trained, new)
        text = card.readme(trained, format_name=format_name, folder=target.name, normalized_inputs=normalized_inputs)
        replace_file(new / "README.md", [text.encode()])
        if target.exists():
            shutil.rmtree(target)
        new.replace(target)
    except (OSError, InputError):
        shutil.rmtree(new, ignore_errors=True)
        raise
    sync_folder(target.parent)
    return trained


def _check_target(target: Path, *, source: Path, overwrite: bool) -> None:
    """Checks that the target may be made.

    Raises:
        InputError: if it may not.
    """
    if target.resolve() == source.resolve():
        raise InputError(f"{target} is the folder that would be exported; give another one")
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file; give a folder to make")
    if any(target.iterdir()) and not overwrite:
        raise InputError(f"{target} is there already and not empty; give another folder, or replace it with --overwrite")
