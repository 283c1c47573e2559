"""Where the trained autoencoder of a run lies: the folder it was trained in, or fetched from the tracking server."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prolu_tune.errors import InputError
from prolu_tune.results.store import RUN_ID, open_store, parse_reference, resolve_tracking_uri, store_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SAE_FILES = ("sae.safetensors", "config.json")


@contextmanager
def sae_folder(reference: str | Path, *, tracking_uri: str | None = None, storage: str | Path | None = None) -> Iterator[Path]:
    """Yields the folder with `sae.safetensors` and `config.json`; one that was fetched is gone afterwards.

    Args:
        reference: Folder of an autoencoder, its `sae.safetensors`, or the MLflow run id of a trial (`runs:/ID` as well).
        tracking_uri: Tracking store; for a run id only, as in `load_sweep`.
        storage: Storage folder, as in `load_sweep`.

    Raises:
        InputError: if there is no such folder or run, or the run holds no autoencoder.
        SurroundingsError: if the store does not answer.
    """
    path = Path(reference).expanduser()
    if isinstance(reference, Path) or path.exists():
        yield path if path.is_dir() or not path.exists() else path.parent
        return
    parsed = parse_reference(reference)
    if parsed.name is None or not RUN_ID.fullmatch(parsed.name):
        raise InputError(
            f"{reference} is neither a folder with sae.safetensors and config.json nor an MLflow run id; "
            "list the ids with prolu-tune pareto NAME"
        )
    uri = parsed.tracking_uri or resolve_tracking_uri(tracking_uri, storage)
    client = open_store(uri)
    checkpoint = _get_run(client, uri, parsed.name).data.tags.get("prolu.checkpoint")
    with run_folder(client, uri, parsed.name, checkpoint=checkpoint) as folder:
        yield folder


@contextmanager
def run_folder(client: "MlflowClient", tracking_uri: str, run_id: str, *, checkpoint: str | None) -> Iterator[Path]:
    """Yields a run's folder: `checkpoint` if it is on this machine, else the run's artifacts, fetched.

    Raises:
        InputError: if the run holds no autoencoder.
        SurroundingsError: if the store does not answer.
    """
    if checkpoint and Path(checkpoint).is_dir():
        yield Path(checkpoint)
        return
    with tempfile.TemporaryDirectory(prefix="prolu-sae-") as folder:
        yield _download(client, tracking_uri, run_id, Path(folder))


def _get_run(client: "MlflowClient", uri: str, run_id: str) -> "Run":
    from mlflow.exceptions import MlflowException

    with store_errors(uri):
        try:
            return client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise InputError(f"no run {run_id} in the tracking store; list the ids with prolu-tune pareto NAME") from error
            raise


def _download(client: "MlflowClient", uri: str, run_id: str, folder: Path) -> Path:
    """Returns the run's SAE folder, fetched file by file under names of our own: a server's list of names is data."""
    with store_errors(uri):
        present = {Path(entry.path).name for entry in client.list_artifacts(run_id, "sae")}
        if not present.issuperset(SAE_FILES):
            raise InputError(f"run {run_id} holds no trained SAE; only a trial that ended has one (prolu-tune status NAME)")
        target = folder / "sae"
        target.mkdir()
        for name in SAE_FILES:
            # Where below the folder it lands depends on the kind of artifact store.
            Path(client.download_artifacts(run_id, f"sae/{name}", str(folder))).replace(target / name)
    return target
