"""Makes the SQLite database that a sweep without a server writes to: whole or not at all.

MLflow makes its tables in place, table by table, and a database that is killed in the middle of that never opens again
("duplicate column name").
"""

import fcntl
import os
from pathlib import Path

from prolu_tune.durable import sync_folder
from prolu_tune.results.store import sqlite_file


def make_database(uri: str) -> None:
    """Makes MLflow's tables in a file beside the one the URI names, then puts it there; does nothing if there is one.

    Another process that wants the same database waits.

    Raises:
        OSError: if the folder cannot be written.
        sqlalchemy.exc.SQLAlchemyError: if the database cannot.
    """
    if not uri.startswith("sqlite"):
        return
    path = sqlite_file(uri)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        temporary = path.with_name(f"{path.name}.tmp")
        for left in (temporary, temporary.with_name(f"{temporary.name}-journal")):
            left.unlink(missing_ok=True)
        _make_tables(f"sqlite:///{temporary}")
        with temporary.open("r+b") as made:
            os.fsync(made.fileno())
        temporary.replace(path)
        Path(lock.name).unlink()
        sync_folder(path.parent)


def _make_tables(uri: str) -> None:
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(uri, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH)
    store.engine.dispose()
