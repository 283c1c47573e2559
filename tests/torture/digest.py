"""What two runs of a sweep must agree in, to the bit, read from what a user gets: MLflow's database, SAE folders, records."""

import hashlib
import json
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

from safetensors import safe_open

TIMES = ("wall_s", "tokens_per_s")
"""Metrics that tell of time, not of the result."""
LEFT_OUT = ("run_id", "checkpoint", *TIMES)
"""Fields of a record that may differ: ids, paths, times."""


def digest(storage: Path, name: str, *, database: Path, records: list[dict[str, Any]]) -> dict[str, str]:
    """Returns a SHA-256 for each part of a sweep's result, so that a difference says where it is.

    Args:
        storage: the storage folder.
        name: the sweep's name.
        database: MLflow's SQLite file.
        records: `runs` of the document that the last command printed.
    """
    parts: dict[str, Any] = {}
    for record in records:
        parts[f"record {record['trial']:04d}"] = {key: _bits(value) for key, value in record.items() if key not in LEFT_OUT}
    for index, run in tracked_trials(database, name).items():
        parts[f"mlflow {index:04d}"] = run
    for folder in sorted((storage / "sweeps" / name / "trials").iterdir()):
        if (folder / "sae").is_dir():
            parts[f"sae {folder.name}"] = _tensors(folder / "sae" / "sae.safetensors")
    return {key: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for key, part in parts.items()}


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Returns the names of the parts that differ or are missing on one side."""
    return sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))


def tracked_trials(database: Path, name: str) -> dict[int, dict[str, Any]]:
    """Returns what MLflow holds of each trial: parameters, state, frontier, every (metric, step, value as 8 bytes)."""
    trials: dict[int, dict[str, Any]] = {}
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as connection:
        for run in _runs(connection, name, kind="trial"):
            tags = _pairs(connection, "tags", run)
            index = int(tags["prolu.trial"])
            rows = connection.execute("select key, step, value, is_nan from metrics where run_uuid = ?", (run,))
            trials[index] = {
                "state": tags.get("prolu.state"),
                "pareto": tags.get("prolu.pareto"),
                "message": tags.get("prolu.message"),
                "params": _pairs(connection, "params", run),
                "metrics": sorted([key, step, _bits(value), nan] for key, step, value, nan in rows if key not in TIMES),
                "status": connection.execute("select status from runs where run_uuid = ?", (run,)).fetchone()[0],
            }
    return trials


def complaints(database: Path, name: str, *, num_trials: int) -> list[str]:
    """Returns what is not exactly once in MLflow: runs of a trial, rows of a (run, key, step)."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as connection:
        parents = _runs(connection, name, kind="sweep")
        children = _runs(connection, name, kind="trial")
        indices = sorted(int(_pairs(connection, "tags", run)["prolu.trial"]) for run in children)
        doubled = connection.execute(
            "select run_uuid, key, step, count(*) from metrics group by run_uuid, key, step having count(*) > 1"
        ).fetchall()
    found = []
    if len(parents) != 1:
        found.append(f"{len(parents)} parent runs")
    if indices != list(range(num_trials)):
        found.append(f"runs of the trials {indices}, {num_trials} trials ended")
    return found + [f"{count} rows of {key} at step {step} in run {run}" for run, key, step, count in doubled]


def _runs(connection: sqlite3.Connection, name: str, *, kind: str) -> list[str]:
    query = (
        "select runs.run_uuid from runs "
        "join tags as sweep on sweep.run_uuid = runs.run_uuid and sweep.key = 'prolu.sweep' and sweep.value = ? "
        "join tags as kind on kind.run_uuid = runs.run_uuid and kind.key = 'prolu.kind' and kind.value = ? "
        "where runs.lifecycle_stage = 'active'"
    )
    return [row[0] for row in connection.execute(query, (name, kind))]


def _pairs(connection: sqlite3.Connection, table: str, run: str) -> dict[str, str]:
    return dict(connection.execute(f"select key, value from {table} where run_uuid = ?", (run,)).fetchall())


def _tensors(file: Path) -> dict[str, str]:
    with safe_open(file, framework="numpy") as tensors:
        return {name: hashlib.sha256(tensors.get_tensor(name).tobytes()).hexdigest() for name in sorted(tensors.keys())}


def _bits(value: Any) -> Any:
    return struct.pack(">d", value).hex() if isinstance(value, float) else value
