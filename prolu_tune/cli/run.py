"""`run` and `cache`: from a search space to work done."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from prolu_tune.cli.options import (
    EXIT_CODES,
    Json,
    Settings,
    SpaceFile,
    Storage,
    SweepName,
    TrackingUri,
    examples,
)
from prolu_tune.errors import InputError
from prolu_tune.results.store import DEFAULT_STORAGE

ENVIRONMENT = "Environment: PROLU_STORAGE, PROLU_TRACKING_URI (or MLFLOW_TRACKING_URI), PROLU_EXPERIMENT, PROLU_ADDRESS."


def register(app: typer.Typer) -> None:
    """Adds the verbs of this module."""
    app.command(
        "run",
        help="Runs a sweep. The same command again continues an unfinished sweep and returns at once on a finished one.",
        epilog=examples(
            "prolu-tune run search_spaces/quickstart.yaml",
            "prolu-tune run search_spaces/exp3.yaml --name exp3-lr3e-4 --set training.lr=3e-4",
            "prolu-tune run search_spaces/exp3.yaml --retry-failed --storage /data/prolu_runs",
            note=f"{ENVIRONMENT} {EXIT_CODES}",
        ),
    )(run)
    app.command(
        "cache",
        help="Prepares the activations of a space ahead of the sweep, as far as the cache holds them.",
        epilog=examples(
            "prolu-tune cache search_spaces/exp3.yaml",
            "prolu-tune cache search_spaces/smollm2.yaml --set activations.cache_gb=4 --storage /data/prolu_runs",
            note="Environment: PROLU_STORAGE.",
        ),
    )(cache)


def run(
    space_file: SpaceFile,
    name: SweepName = None,
    settings: Settings = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="ADDR",
            envvar="PROLU_ADDRESS",
            help="A running Ray cluster; default: starts Ray here.",
            show_default=False,
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Starts anew; the stored sweep of this name is put aside.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Runs failed trials again.")] = False,
    as_json: Json = False,
) -> None:
    from prolu_tune.search.space import load_space

    space = load_space(space_file, overrides=settings, name=name)
    storage = storage_folder(storage)

    from prolu_tune.results.records import to_json
    from prolu_tune.screen.screen import make_screen
    from prolu_tune.sweep.runner import run_sweep

    outcome = run_sweep(
        space,
        storage=storage,
        tracking_uri=tracking_uri,
        address=address,
        fresh=fresh,
        retry_failed=retry_failed,
        screen=make_screen(),
    )
    if as_json:
        typer.echo(to_json({"sweep": outcome.sweep, "runs": outcome.records, "message": outcome.message}))
    raise typer.Exit(outcome.exit_code)


def cache(space_file: SpaceFile, settings: Settings = None, storage: Storage = DEFAULT_STORAGE, as_json: Json = False) -> None:
    from prolu_tune.search.space import load_space

    space = load_space(space_file, overrides=settings)
    storage = storage_folder(storage)

    from prolu_tune.results.records import to_json
    from prolu_tune.screen.screen import make_screen
    from prolu_tune.sweep.runner import prepare_cache

    num_chunks = prepare_cache(space, storage=storage, screen=make_screen())
    if as_json:
        typer.echo(to_json({"sweep": space.name, "chunks": num_chunks}))
    print(f"{num_chunks} chunks are ready; next: prolu-tune run {space_file}", file=sys.stderr)


def storage_folder(storage: Path) -> Path:
    """Returns the storage folder, absolute; makes nothing.

    Raises:
        InputError: if it is not a folder that could be written to.
    """
    if ":/" in str(storage):
        raise InputError(f"--storage {storage}: give a folder (one that every machine of a cluster sees), not a URI")
    folder = storage.expanduser().absolute()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"--storage {storage}: cannot write to {nearest}; give another folder with --storage or PROLU_STORAGE")
    return folder
