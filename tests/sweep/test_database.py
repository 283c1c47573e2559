"""MLflow's database is there whole or not at all, whenever its maker is killed: real processes, real SIGKILLs."""

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from prolu_tune.results.quiet import quiet_mlflow
from prolu_tune.sweep.database import make_database

MAKE = "import sys; from prolu_tune.results.quiet import quiet_mlflow; quiet_mlflow(); "
MAKE += "from mlflow.store.tracking import sqlalchemy_store; print(1, flush=True); "
OURS = "from prolu_tune.sweep.database import make_database; make_database(sys.argv[1])"
IN_PLACE = "sqlalchemy_store.SqlAlchemyStore(sys.argv[1], './mlruns')"


def _start(uri: str, code: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", MAKE + code, uri], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    return process


def _opens(uri: str) -> bool:
    quiet_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    try:
        store = SqlAlchemyStore(uri, "./mlruns")
    except SQLAlchemyError:
        return False
    return store.get_experiment_by_name("Default") is not None


def _killed_when_it_has(size: int, watched: Path, uri: str, code: str) -> None:
    process = _start(uri, code)
    while process.poll() is None and not (watched.exists() and watched.stat().st_size >= size):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_maker_leaves_none_and_the_next_one_goes_on(tmp_path: Path) -> None:
    path, uri = tmp_path / "mlflow.db", f"sqlite:///{tmp_path / 'mlflow.db'}"
    _killed_when_it_has(100_000, tmp_path / "mlflow.db.tmp", uri, OURS)
    assert not path.exists()
    make_database(uri)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mlflow.db"]
    assert _opens(uri)


def test_made_in_place_a_kill_leaves_one_that_never_opens_so_that_the_detour_is_needed(tmp_path: Path) -> None:
    path, uri = tmp_path / "mlflow.db", f"sqlite:///{tmp_path / 'mlflow.db'}"
    _killed_when_it_has(300_000, path, uri, IN_PLACE)
    assert not _opens(uri)


def test_of_two_makers_one_makes_it_and_the_other_leaves_it_alone(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    made = [_start(uri, OURS + "; import os; print(os.stat(sys.argv[1][10:]).st_ino)") for _ in range(2)]
    told = [process.communicate(timeout=120)[0] for process in made]
    assert told[0] == told[1] == f"{(tmp_path / 'mlflow.db').stat().st_ino}\n"


def test_one_that_is_there_and_a_server_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("create table mine (x)")
    before = path.read_bytes()
    for uri in (f"sqlite:///{path}", f"sqlite:///{path}?timeout=30", f"sqlite+pysqlite:///{path}"):
        make_database(uri)
    make_database("http://127.0.0.1:1")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
