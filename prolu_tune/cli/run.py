"""`run`, `cache` and `stop`: from a search space to work done, here or on a cluster."""

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

ENVIRONMENT = (
    "Environment: PROLU_STORAGE, PROLU_TRACKING_URI (or MLFLOW_TRACKING_URI), PROLU_EXPERIMENT, PROLU_ADDRESS, RAY_ADDRESS, "
    "PROLU_CLUSTER."
)
WHERE = (
    "Where it runs: --address, else RAY_ADDRESS, else --cluster, else the cluster that `ray up` brought up from cluster/, else "
    "this machine (--address local says so). On a cluster it goes on when this machine leaves."
)
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDR",
        envvar="PROLU_ADDRESS",
        help="A running Ray: auto, HOST:PORT, or http://HOST:8265 to hand it the sweep as a job; local: this machine.",
        show_default=False,
    ),
]
ClusterFileOption = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        metavar="FILE",
        envvar="PROLU_CLUSTER",
        help="The cluster of this `ray up` file, through ssh.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the verbs of this module."""
    app.command(
        "run",
        help="Runs a sweep. The same command again continues an unfinished sweep and returns at once on a finished one.",
        epilog=examples(
            "prolu-tune run search_spaces/quickstart.yaml",
            "prolu-tune run search_spaces/exp3.yaml --name slow --set training.lr=3e-4",
            "prolu-tune run search_spaces/exp3.yaml --cluster cluster/gpu.yaml",
            note=f"{WHERE} {ENVIRONMENT} {EXIT_CODES}",
        ),
    )(run)
    app.command(
        "stop",
        help="Has a sweep on a cluster save its trials and stop. The command that started it goes on with it.",
        epilog=examples(
            "prolu-tune stop exp3",
            "prolu-tune stop exp3 --cluster cluster/gpu.yaml",
            note=f"{ENVIRONMENT} Exit codes: 0 stopped, 1 it does not run there, 2 wrong input, 3 the cluster does not answer.",
        ),
    )(stop)
    app.command(
        "cache",
        help="Prepares the activations of a space ahead of the sweep, as far as the cache holds them.",
        epilog=examples(
            "prolu-tune cache search_spaces/exp3.yaml",
            "prolu-tune cache search_spaces/smollm2.yaml --storage /data/prolu_runs",
            note="Environment: PROLU_STORAGE.",
        ),
    )(cache)


def run(
    space_file: SpaceFile,
    name: SweepName = None,
    settings: Settings = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    address: Address = None,
    cluster: ClusterFileOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Starts anew; the stored sweep of this name is put aside.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Runs failed trials again.")] = False,
    accept_numerics: Annotated[
        bool, typer.Option("--accept-numerics", help="Goes on with trials begun where the last bits come out otherwise.")
    ] = False,
    as_json: Json = False,
) -> None:
    from prolu_tune.launch.find import find_target
    from prolu_tune.results.places import storage_uri
    from prolu_tune.results.records import to_json
    from prolu_tune.search.space import load_space

    space = load_space(space_file, overrides=settings, name=name, elsewhere=True)
    target = find_target(address, cluster, note=_say)
    if target.kind == "job":
        from prolu_tune.launch.submit import Request, run_on_cluster

        request = Request(
            space_file=space_file,
            space=space,
            overrides=settings or [],
            storage=None if storage == DEFAULT_STORAGE else storage_uri(storage) or str(storage),
            tracking_uri=tracking_uri,
            fresh=fresh,
            retry_failed=retry_failed,
            accept_numerics=accept_numerics,
        )
        left = run_on_cluster(request, target)
        if left.message:
            _say(left.message)
        if as_json and left.exit_code in (0, 1):
            typer.echo(to_json({"sweep": space.name, "runs": left.records, "message": left.message}))
        raise typer.Exit(left.exit_code)
    space = load_space(space_file, overrides=settings, name=name)

    from prolu_tune.screen.screen import make_screen
    from prolu_tune.sweep.runner import run_sweep

    outcome = run_sweep(
        space,
        storage=storage_uri(storage) or storage_folder(storage),
        tracking_uri=tracking_uri,
        address=target.address,
        fresh=fresh,
        retry_failed=retry_failed,
        accept_numerics=accept_numerics,
        screen=make_screen(),
        restart=_same_command,
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


def stop(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the sweep.", show_default=False)],
    address: Address = None,
    cluster: ClusterFileOption = None,
) -> None:
    from prolu_tune.errors import InputError
    from prolu_tune.launch.find import find_target

    target = find_target(address, cluster, note=_say)
    if target.kind != "job":
        raise InputError(
            f"no cluster is up that could run {name}; give its file with --cluster (a sweep on this machine stops with Ctrl-C)"
        )
    from prolu_tune.launch.submit import stop_on_cluster

    left = stop_on_cluster(name, target)
    if left.message:
        _say(left.message)
    raise typer.Exit(left.exit_code)


def _same_command() -> None:
    """Puts a new process with the same command in the place of this one; what is to be done once only is left out."""
    arguments = [argument for argument in sys.orig_argv[1:] if argument not in ("--fresh", "--retry-failed")]
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606  our own command, no shell


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def storage_folder(storage: Path) -> Path:
    """Returns the storage folder, absolute; makes nothing.

    Raises:
        InputError: if it is not a folder that could be written to.
    """
    if ":/" in str(storage):
        raise InputError(f"--storage {storage}: give a folder here; a URI is for run")
    folder = storage.expanduser().absolute()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"--storage {storage}: cannot write to {nearest}; give another folder with --storage or PROLU_STORAGE")
    return folder
