"""`export`: a trained autoencoder as a folder that other tools read, and on the Hugging Face hub."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from prolu_tune.cli.options import Cluster, Json, Storage, TrackingUri, examples, tracked
from prolu_tune.results.store import DEFAULT_STORAGE

ENVIRONMENT = (
    "Environment: PROLU_STORAGE, PROLU_TRACKING_URI (or MLFLOW_TRACKING_URI); HF_TOKEN and HF_ENDPOINT for the hub. "
    "Exit codes: 0 done, 2 wrong input or not expressible in the format, 3 disk, tracking store or hub failed."
)
LOADERS = {
    "saelens": "from sae_lens import SAE; sae = SAE.load_from_disk({folder!r})",
    "dictionary_learning": (
        "from dictionary_learning.utils import load_dictionary; sae, config = load_dictionary({folder!r}, device='cpu')"
    ),
    "prolu": "from prolu_tune import load_sae; sae = load_sae({folder!r})",
}


def register(app: typer.Typer) -> None:
    """Adds the verb of this module."""
    app.command(
        "export",
        help="Writes a trained autoencoder as a folder that SAELens, dictionary_learning or prolu-tune reads, with a card.",
        epilog=examples(
            "prolu-tune export 0a1b2c3d4e5f60718293a4b5c6d7e8f9 ste",
            "prolu-tune export prolu_runs/sweeps/mine/trials/0004/sae ste --format prolu",
            "prolu-tune export 0a1b2c3d4e5f60718293a4b5c6d7e8f9 ste --push-to-hub me/saes",
            note=f"Run ids: prolu-tune best NAME --max-l0 25. {ENVIRONMENT}",
        ),
    )(export)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="MLflow run id of a trial, or its SAE folder.", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make.", show_default=False)],
    format_name: Annotated[
        Literal["saelens", "dictionary_learning", "prolu"], typer.Option("--format", help="Who is to read it.")
    ] = "saelens",
    push_to_hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", metavar="USER/REPO", help="Uploads the folder there under its name.", show_default=False),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A repository made by --push-to-hub is private.")] = False,
    normalized_inputs: Annotated[
        bool,
        typer.Option(
            "--normalized-inputs",
            help="For dictionary_learning: leave out the normalisation per token; you rescale tokens to norm sqrt(d_in).",
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replaces DIR if it is there.")] = False,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    cluster: Cluster = None,
    as_json: Json = False,
) -> None:
    from prolu_tune.errors import InputError

    if private and push_to_hub is None:
        raise InputError("--private has no effect without --push-to-hub; leave it out")
    if push_to_hub is not None:
        from prolu_tune.export.hub import check_repo_id

        check_repo_id(push_to_hub)

    from rich.console import Console

    from prolu_tune.export.formats import export_folder
    from prolu_tune.export.hub import push_folder
    from prolu_tune.results.checkpoints import sae_folder
    from prolu_tune.results.records import to_json

    tracking_uri = tracked(cluster, tracking_uri)
    target = folder.expanduser().absolute()
    url = None
    with (
        Console(stderr=True).status(f"exporting {run}"),
        sae_folder(run, tracking_uri=tracking_uri, storage=storage) as source,
    ):
        trained = export_folder(
            source, target, format_name=format_name, normalized_inputs=normalized_inputs, overwrite=overwrite
        )
    print(f"{folder}: {trained.label}, {trained.sae.d_sae:,} latents, for {format_name}", file=sys.stderr)
    if push_to_hub is not None:
        url = push_folder(target, push_to_hub, message=f"{trained.label} ({format_name})", private=private)
        print(f"uploaded to {url}", file=sys.stderr)
    if as_json:
        files = sorted(path.name for path in target.iterdir())
        document = {"run": run, "format": format_name, "folder": str(folder), "files": files, "url": url}
        typer.echo(to_json(document))
    else:
        typer.echo(LOADERS[format_name].format(folder=str(folder)))
