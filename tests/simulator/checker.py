"""Looks at what a sweep left behind, from outside: files, journal and tracking server, with readers of its own."""

import fcntl
import hashlib
import json
import math
import struct
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from simulator.world import World

FINISHED_STATES = (1, 2, 3)
"""Optuna's COMPLETE, PRUNED, FAIL."""
LEFT_OUT = ("wall_s",)
TEMPORARY = (".tmp", ".old", ".lock", ".damaged")
STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}


class Entry:
    """One entry of the study, put together from the journal's records."""

    def __init__(self, number: int, state: int, attrs: dict[str, Any]) -> None:
        self.number = number
        self.state = state
        self.attrs = dict(attrs)
        self.ends = int(state in FINISHED_STATES)


def read_journal(path: Path) -> list[Entry]:
    """Returns the study's entries; operations as Optuna's journal numbers them."""
    entries: list[Entry] = []
    for line in path.read_bytes().splitlines():
        record = json.loads(line)
        match record["op_code"]:
            case 4:
                entries.append(Entry(len(entries), record.get("state", 0), record.get("user_attrs", {})))
            case 6:
                entry = entries[record["trial_id"]]
                entry.state = record["state"]
                entry.ends += int(record["state"] in FINISHED_STATES)
            case 8:
                entries[record["trial_id"]].attrs |= record["user_attr"]
    return entries


def digest(world: World) -> dict[str, Any]:
    """Returns what must be equal whatever happened: the digest of the reliability promise, in readable parts."""
    folder = world.root / "sweeps" / world.space.name
    entries = read_journal(folder / "study.journal")
    trials = {}
    for entry in entries:
        if "index" not in entry.attrs:
            continue
        index, result = entry.attrs["index"], json.loads(entry.attrs.get("result", "{}"))
        record = {key: value for key, value in result.get("record", {}).items() if key not in LEFT_OUT}
        place = folder / "trials" / f"{index:04d}"
        tensors = place / "sae" / "sae.safetensors"
        trials[index] = {
            "config": entry.attrs["config"],
            "outcome": result.get("outcome"),
            "message": result.get("message"),
            "predicted_l0": result.get("predicted_l0"),
            "course": result.get("course"),
            "record": record,
            "rows": [
                (key, row["step"], struct.pack("<d", math.nan if value is None else value))
                for row in rows_of(place)
                for key, value in row.items()
            ],
            "sae": hashlib.sha256(tensors.read_bytes()).hexdigest() if tensors.exists() else None,
        }
    parents = [run for run in world.server.runs.values() if run.tags.get("prolu.kind") == "sweep"]
    return {
        "trials": trials,
        "entries": [(entry.number, entry.attrs.get("index"), entry.state) for entry in entries],
        "frontier": sorted(record["trial"] for record in world.outcome.records if record["on_frontier"]),
        "coverage": {
            row[0]: row[1]
            for run in parents
            for row in sorted(run.rows, key=lambda row: row[3])  # the latest step is what a person sees
            if row[0].startswith("coverage/")
        },
    }


def rows_of(trial_folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of a trial's file without their checksums."""
    path = trial_folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    return [{key: value for key, value in row.items() if key != "crc32"} for row in rows]


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Returns where two digests differ."""
    told = [
        f"{part} is {found[part]}, undisturbed {expected[part]}"
        for part in ("entries", "frontier", "coverage")
        if found[part] != expected[part]
    ]
    for index in expected["trials"].keys() | found["trials"].keys():
        a, b = expected["trials"].get(index), found["trials"].get(index)
        if a is None or b is None:
            told.append(f"trial {index} is {'missing' if b is None else 'one too many'}")
            continue
        told += [
            f"trial {index}: {key} is {str(b[key])[:300]}, undisturbed {str(a[key])[:300]}" for key in a if a[key] != b[key]
        ]
    return told


def broken_promises(world: World) -> list[str]:
    """Returns what is wrong with the end of a sweep, apart from the digest."""
    return [*_study(world), *_server(world), *_leftovers(world)]


def _study(world: World) -> list[str]:
    told = []
    indices: Counter[int] = Counter()
    for entry in read_journal(world.root / "sweeps" / world.space.name / "study.journal"):
        if entry.state not in FINISHED_STATES:
            told.append(f"study entry {entry.number} is still running")
        if entry.ends > 1:
            told.append(f"study entry {entry.number} was told {entry.ends} times")
        if "index" in entry.attrs:
            indices[entry.attrs["index"]] += 1
    told += [f"trial {index} has {count} study entries" for index, count in indices.items() if count != 1]
    for index, steps in world.acknowledged.items():
        if index not in indices:
            told.append(f"trial {index} was shown as {steps} and is not in the study")
    return told


def _server(world: World) -> list[str]:
    told = []
    runs = [run for run in world.server.runs.values() if not run.deleted]
    parents = [run for run in runs if run.tags.get("prolu.kind") == "sweep"]
    if len(parents) != 1:
        return [f"{len(parents)} parent runs"]
    if parents[0].status != "FINISHED":
        told.append(f"the parent run is {parents[0].status}")
    trials = Counter(int(run.tags["prolu.trial"]) for run in runs if run.tags.get("prolu.kind") == "trial")
    told += [f"trial {index} has {count} MLflow runs" for index, count in trials.items() if count != 1]
    records = {record["trial"]: record for record in world.outcome.records}
    told += [f"trial {index} has no MLflow run" for index in records.keys() - trials.keys()]
    told += [f"trial {index} has an MLflow run and no record" for index in trials.keys() - records.keys()]
    for run in runs:
        rows = Counter((key, step) for key, _, _, step, _ in run.rows)
        told += [f"{run.name}: {count} rows of {key} at step {step}" for (key, step), count in rows.items() if count > 1]
        if run.tags.get("prolu.kind") == "trial" and int(run.tags["prolu.trial"]) in records:
            told += _trial_run(world, run, records[int(run.tags["prolu.trial"])])
    return told


def _trial_run(world: World, run: Any, record: dict[str, Any]) -> list[str]:
    index, told = record["trial"], []
    place = world.root / "sweeps" / world.space.name / "trials" / f"{index:04d}"
    expected = {
        (f"train/{key}", row["step"]): math.nan if value is None else value
        for row in rows_of(place)
        for key, value in row.items()
        if key != "step"
    }
    for key, value, when, step, nan in run.rows:
        if key.startswith("train/"):
            wanted = expected.pop((key, step), "nothing")
            same = wanted == value if not nan else isinstance(wanted, float) and math.isnan(wanted)
            if not same or when != run.start_ms + step:
                told.append(f"MLflow has {key} {value} at step {step} of trial {index}, its file {wanted}")
        elif record.get(key, value) != value:
            told.append(f"MLflow has {key} {value} of trial {index}, the record {record[key]}")
    told += [f"MLflow lacks {key} at step {step} of trial {index}" for key, step in expected]
    have = {key for key, *_ in run.rows}
    told += [
        f"MLflow lacks {key} of trial {index}"
        for key in ("l0", "mse", "ce_degradation", "steps")
        if record.get(key) is not None and key not in have
    ]
    if run.tags.get("prolu.state") != record["state"] or run.status != STATUS[record["state"]]:
        told.append(f"MLflow has trial {index} as {run.tags.get('prolu.state')} ({run.status}), it {record['state']}")
    if (run.tags.get("prolu.pareto") == "true") != record["on_frontier"]:
        told.append(f"MLflow's tag prolu.pareto of trial {index} is {run.tags.get('prolu.pareto')}")
    if run.params.get("training.l1_coefficient") != str(record["l1_coefficient"]) or len(run.params) < 30:
        told.append(f"MLflow has {len(run.params)} parameters of trial {index}")
    if record["checkpoint"] is not None:
        artifacts = Path(unquote(urlparse(run.artifact_uri).path)) / "sae"
        for name in ("sae.safetensors", "config.json"):
            stored = artifacts / name
            if not stored.exists() or stored.read_bytes() != (place / "sae" / name).read_bytes():
                told.append(f"the artifact {name} of trial {index} is {'not the same' if stored.exists() else 'missing'}")
    return told


def _leftovers(world: World) -> list[str]:
    told = []
    failed = {f"{record['trial']:04d}" for record in world.outcome.records if record["state"] == "failed"}
    for path in sorted(world.root.rglob("*")):
        name = path.name
        if name == "checkpoints" and path.parent.name in failed:
            continue  # --retry-failed goes on from them
        if (
            name.endswith(TEMPORARY)
            or name.startswith(".write-test")
            or name in ("stop", "ray", "checkpoints", "local_ray.json")
        ):
            told.append(f"left behind: {path.relative_to(world.root)}")
    lock = world.root / "sweeps" / world.space.name / "lock"
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            told.append("the lock is still held")
    return told
