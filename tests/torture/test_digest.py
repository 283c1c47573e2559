"""The judge must see what it is there to see: one bit, one row, one run."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from torture.digest import complaints, differences, digest

RECORD: dict[str, Any] = {"trial": 0, "l0": 12.5, "state": "finished", "run_id": "r0", "wall_s": 3.0, "on_frontier": True}


def _store(folder: Path, *, value: float = 0.1, doubled: bool = False, runs: tuple[str, ...] = ("r0",)) -> Path:
    database = folder / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(
            "create table runs (run_uuid, status, lifecycle_stage); create table tags (run_uuid, key, value);"
            "create table params (run_uuid, key, value); create table metrics (run_uuid, key, step, value, is_nan, timestamp);"
        )
        kinds = [("p", "sweep"), *((run, "trial") for run in runs)]
        for run, kind in kinds:
            connection.execute("insert into runs values (?, 'FINISHED', 'active')", (run,))
            for key, text in (("prolu.sweep", "s"), ("prolu.kind", kind), ("prolu.trial", "0")):
                connection.execute("insert into tags values (?, ?, ?)", (run, key, text))
        for time in (1, 2) if doubled else (1,):
            connection.execute("insert into metrics values ('r0', 'train/l0', 4, ?, 0, ?)", (value, time))
        connection.commit()
    return database


def _sae(folder: Path, *, bias: float = 0.0) -> None:
    sae = folder / "sweeps" / "s" / "trials" / "0000" / "sae"
    sae.mkdir(parents=True)
    save_file({"b_enc": np.full(3, bias, np.float32)}, sae / "sae.safetensors")


def _digest(folder: Path, *, record: dict[str, Any] = RECORD, bias: float = 0.0, value: float = 0.1) -> dict[str, str]:
    folder.mkdir()
    _sae(folder, bias=bias)
    return digest(folder, "s", database=_store(folder, value=value), records=[record])


def test_ids_and_times_do_not_count_and_one_bit_of_anything_else_does(tmp_path: Path) -> None:
    first = _digest(tmp_path / "a")
    other_id = RECORD | {"run_id": "r7", "wall_s": 9.0, "checkpoint": "/elsewhere"}
    assert differences(first, _digest(tmp_path / "b", record=other_id)) == []
    assert differences(first, _digest(tmp_path / "c", bias=1e-45)) == ["sae 0000"]
    assert differences(first, _digest(tmp_path / "d", value=float(np.nextafter(0.1, 1)))) == ["mlflow 0000"]
    assert differences(first, _digest(tmp_path / "e", record=RECORD | {"on_frontier": False})) == ["record 0000"]
    assert differences(first, {}) == ["mlflow 0000", "record 0000", "sae 0000"]


@pytest.mark.parametrize(
    ("store", "num_trials", "said"),
    [
        ({}, 1, []),
        ({"doubled": True}, 1, ["2 rows of train/l0 at step 4 in run r0"]),
        ({"runs": ("r0", "r1")}, 1, ["runs of the trials [0, 0], 1 trials ended"]),
        ({}, 2, ["runs of the trials [0], 2 trials ended"]),
    ],
)
def test_what_is_not_exactly_once_is_complained_of(store: dict, num_trials: int, said: list[str], tmp_path: Path) -> None:
    assert complaints(_store(tmp_path, **store), "s", num_trials=num_trials) == said
