"""Opens a tracking store for reading: finds a sweep in it and reads its runs page by page. Creates nothing."""

import difflib
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.results.places import local_storage
from prolu_tune.results.quiet import quiet_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_EXPERIMENT = "prolu-tune"
DEFAULT_STORAGE = Path("prolu_runs")
PAGE_RUNS = 1000
"""Runs per call; a sweep of a thousand trials takes one."""
RUN_ID = re.compile(r"[0-9a-f]{32}")
NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
"""Sweep names; one put aside by `--fresh` has a time behind its name."""
SERVER_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""A query is asked by a person who waits; MLflow's own defaults try for minutes."""


@dataclass(frozen=True)
class Reference:
    """What a person wrote to name a sweep or a run: where the store is, if they said so, and which one."""

    tracking_uri: str | None
    name: str | None
    """Sweep name or run id; None: the only sweep of the store."""


def parse_reference(text: str) -> Reference:
    """Returns the parts of a name, a run id, `runs:/ID`, a page of MLflow's UI, or a tracking URI with `#NAME`."""
    if text.startswith("runs:/"):
        return Reference(None, text.removeprefix("runs:/").strip("/").split("/")[0])
    if "://" not in text:
        return Reference(None, text)
    base, _, fragment = text.partition("#")
    page = re.search(r"/runs/([0-9a-f]{32})", fragment)
    return Reference(base.rstrip("/"), page.group(1) if page else fragment or None)


def resolve_tracking_uri(tracking_uri: str | None, storage: str | Path | None) -> str:
    """Returns the store's URI: as given, else from PROLU_TRACKING_URI or MLFLOW_TRACKING_URI, else inside the storage.

    Args:
        tracking_uri: From a flag or an argument.
        storage: Folder; None: PROLU_STORAGE or `./prolu_runs`.
    """
    named = tracking_uri or os.environ.get("PROLU_TRACKING_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    folder = local_storage(storage or os.environ.get("PROLU_STORAGE") or DEFAULT_STORAGE)
    return f"sqlite:///{folder / 'mlflow.db'}"


def open_store(tracking_uri: str) -> "MlflowClient":
    """Returns a client of a store that exists.

    Raises:
        InputError: if the URI names a database file that is missing or not MLflow's, or a folder.
        SurroundingsError: if the store does not answer.
    """
    scheme = urlsplit(tracking_uri).scheme
    if scheme.startswith("sqlite"):
        _check_sqlite(tracking_uri)
    elif scheme in ("", "file"):
        raise InputError(
            f"{tracking_uri} is a folder, and MLflow's file store is not used here; "
            "give a server (http://...) or a database (sqlite:///...) with --tracking-uri, or a folder with --storage"
        )
    if scheme in ("http", "https"):
        for key, value in SERVER_PATIENCE.items():
            os.environ.setdefault(key, value)
    quiet_mlflow()
    from mlflow import MlflowClient

    with store_errors(tracking_uri):
        return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


@contextmanager
def store_errors(tracking_uri: str) -> Iterator[None]:
    """Turns what MLflow raises while it talks to a store into one message.

    Raises:
        SurroundingsError: with the first line of MLflow's message and without the password of the URI.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        shown = without_password(tracking_uri)
        reason = str(error).replace(tracking_uri, shown).strip().splitlines()[0][:300]
        raise SurroundingsError(
            f"the tracking store {shown} does not answer: {reason}; check --tracking-uri and that its server runs"
        ) from error


def find_sweep(client: "MlflowClient", tracking_uri: str, name: str | None) -> "Run":
    """Returns the parent run of a sweep: the newest of that name, the run of that id, or the only one of the store.

    Raises:
        InputError: if there is none, naming those that exist.
        SurroundingsError: if the store does not answer.
    """
    with store_errors(tracking_uri):
        if name is not None and RUN_ID.fullmatch(name):
            return _sweep_of_run(client, tracking_uri, name)
        experiment = client.get_experiment_by_name(experiment_name())
        if name is not None and not NAME.fullmatch(name):
            raise InputError(f"{name!r} is not a sweep name: letters, digits, dot, underscore and minus, at most 100")
        wanted = "" if name is None else f" and tags.`prolu.sweep` = '{name}'"
        sweeps = experiment and search_runs(client, [experiment.experiment_id], f"tags.`prolu.kind` = 'sweep'{wanted}")
    if sweeps and (name is not None or len(sweeps) == 1):
        return sweeps[-1]
    raise _unknown_sweep(name, sweep_names(client, tracking_uri), tracking_uri)


def sweep_names(client: "MlflowClient", tracking_uri: str) -> list[str]:
    """Returns the names of the store's sweeps, oldest first."""
    with store_errors(tracking_uri):
        experiment = client.get_experiment_by_name(experiment_name())
        runs = search_runs(client, [experiment.experiment_id], "tags.`prolu.kind` = 'sweep'") if experiment else []
    return list(dict.fromkeys(run.data.tags.get("prolu.sweep", run.info.run_name or "") for run in runs))


def search_runs(client: "MlflowClient", experiments: list[str], query: str) -> "list[Run]":
    """Returns all runs that match, oldest first, in as few calls as there are pages."""
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            experiments, query, max_results=PAGE_RUNS, order_by=["attributes.start_time ASC"], page_token=token
        )
        runs.extend(page)
        token = page.token
        if not token:
            return runs


def experiment_name() -> str:
    """Returns the MLflow experiment that holds the sweeps: `PROLU_EXPERIMENT`, or `prolu-tune`."""
    return os.environ.get("PROLU_EXPERIMENT") or DEFAULT_EXPERIMENT


def without_password(uri: str) -> str:
    """Returns the URI with `***` for a password."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))


def sqlite_file(tracking_uri: str) -> Path:
    """Returns the file that a URI of SQLite names, as SQLAlchemy reads it: up to a question mark, nothing unquoted."""
    return Path(tracking_uri.partition(":///")[2].partition("?")[0])


def _check_sqlite(tracking_uri: str) -> None:
    file = sqlite_file(tracking_uri)
    if not file.is_file():
        raise InputError(
            f"there is no tracking store {file}; run a sweep first (prolu-tune run SPACE.yaml), "
            "or say where one is with --storage DIR or --tracking-uri URI"
        )
    try:
        # Read-only: MLflow itself would make its tables in whatever file it is given.
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            tables = database.execute("SELECT name FROM sqlite_master WHERE name IN ('experiments', 'runs')").fetchall()
    except sqlite3.Error as error:
        raise InputError(f"{file} is not an MLflow database ({error}); give another with --tracking-uri") from error
    if len(tables) < 2:
        raise InputError(f"{file} is not an MLflow database (it has no table of runs); give another with --tracking-uri")


def _sweep_of_run(client: "MlflowClient", tracking_uri: str, run_id: str) -> "Run":
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise _unknown_sweep(run_id, sweep_names(client, tracking_uri), tracking_uri) from error
    tags = run.data.tags
    if tags.get("prolu.kind") == "sweep":
        return run
    if tags.get("prolu.kind") == "trial":
        sweep = tags.get("prolu.sweep")
        raise InputError(f"run {run_id} is trial {tags.get('prolu.trial')} of sweep {sweep}, not a sweep; write {sweep}")
    raise InputError(f"run {run_id} is not a sweep of prolu-tune; give the name of one of its sweeps")


def _unknown_sweep(name: str | None, existing: list[str], tracking_uri: str) -> InputError:
    where = f"{without_password(tracking_uri)} (experiment {experiment_name()})"
    if not existing:
        return InputError(f"no sweep{f' {name}' if name else ''}: {where} holds none; run one with prolu-tune run SPACE.yaml")
    listed = ", ".join(existing[-20:])
    if name is None:
        return InputError(f"{where} holds several sweeps ({listed}); say which one")
    close = difflib.get_close_matches(name, existing, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return InputError(f"no sweep {name} in {where}; there are: {listed}{hint}")
