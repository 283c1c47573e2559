"""Finds the folder of a trained autoencoder by what a person calls it: a folder, or the id of its MLflow run."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prolu_tune.errors import InputError
from prolu_tune.results import query, store


@contextmanager
def trained_folder(reference: str, *, tracking_uri: str | None = None, storage: str | Path | None = None) -> Iterator[Path]:
    """Yields the folder with `sae.safetensors` and `config.json`; a run's is where it was trained, else downloaded.

    Args:
        reference: Folder of an autoencoder, its `sae.safetensors`, or the MLflow run id of a trial (`runs:/ID` as well).
        tracking_uri: Tracking store; for a run id only, as in `load_sweep`.
        storage: Storage folder, as in `load_sweep`.

    Raises:
        InputError: if there is no such folder or run, or the run holds no autoencoder.
        SurroundingsError: if the store does not answer.
    """
    path = Path(reference).expanduser()
    if path.exists():
        yield path if path.is_dir() else path.parent
        return
    parsed = store.parse_reference(reference)
    if parsed.name is None or not store.RUN_ID.fullmatch(parsed.name):
        raise InputError(
            f"{reference} is neither an MLflow run id nor a folder with sae.safetensors and config.json; "
            "list the ids with prolu-tune pareto NAME"
        )
    uri = parsed.tracking_uri or store.resolve_tracking_uri(tracking_uri, storage)
    client = store.open_store(uri)
    run = query._get_run(client, uri, parsed.name)
    local = run.data.tags.get("prolu.checkpoint", "")
    if local and Path(local).is_dir():
        yield Path(local)
        return
    with tempfile.TemporaryDirectory(prefix="prolu-sae-") as folder:
        yield query._download(client, uri, parsed.name, Path(folder))
