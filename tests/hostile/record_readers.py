"""Readers of what a sweep writes line by line and of what a tracking server says, for `readers`."""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from events import operations as op

from hostile.mutate import as_json, forged, mutated_bytes, mutated_tree
from prolu_tune.activations.digests import read_json
from prolu_tune.durable import sealed, unsealed
from prolu_tune.results.filters import StoredTrial
from prolu_tune.results.query import Sweep, SweepFacts
from prolu_tune.results.records import record_from_run, to_json
from prolu_tune.results.status import read_space
from prolu_tune.sweep.files import SweepFolder, read_stored
from prolu_tune.sweep.study import SweepStudy
from prolu_tune.sweep.trial import MetricsFile

# -- the study's journal, rows, small files


def journal(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    """A study's journal: a record changed and sealed anew, or bytes."""
    sweep = SweepFolder(folder)
    (folder / "study.journal").write_bytes(_journal_sample())
    lines = _journal_sample().splitlines(keepends=True)
    if forged(rng):
        at = rng.randrange(len(lines))
        record = mutated_tree(unsealed(lines[at]), rng)
        lines[at : at + 1] = [_sealed(record)] * rng.choice((1, 1, 2)) if rng.random() < 0.8 else []
        data = b"".join(lines)
    else:
        data = mutated_bytes(b"".join(lines), rng)
    (folder / "study.journal").write_bytes(data)

    def read() -> str:
        study = SweepStudy(sweep, "s")
        results, configs = study.results(), study.configs()
        assert results.keys() <= configs.keys()
        return "taken"

    return len(data), read


_JOURNAL: list[bytes] = []


def _journal_sample() -> bytes:
    if not _JOURNAL:
        with tempfile.TemporaryDirectory() as folder:
            op.JOURNAL.prepare(Path(folder))
            _JOURNAL.append((Path(folder) / "sweep" / "study.journal").read_bytes())
    return _JOURNAL[0]


def rows(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    """Rows of metrics: one changed and sealed anew, or bytes."""
    lines = [sealed(op.row(step)) for step in (10, 20, 30, 40)]
    if forged(rng):
        at = rng.randrange(4)
        lines[at] = _sealed(mutated_tree(op.row(10 * at + 10), rng))
        data = b"".join(lines)
    else:
        data = mutated_bytes(b"".join(lines), rng)
    (folder / "metrics.jsonl").write_bytes(data)

    def read() -> str:
        rows = MetricsFile(folder / "metrics.jsonl")
        rows.append(op.row(50))
        return "taken"

    return len(data), read


def small(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    """A small sealed file."""
    data = mutated_bytes(sealed({"steps": 3, "message": "x", "outcome": "finished"}), rng)
    (folder / "trained.json").write_bytes(data)

    def read() -> str:
        assert read_json(folder / "trained.json") is None or unsealed(data)
        assert read_stored(folder / "trained.json") == {"steps": 3, "message": "x", "outcome": "finished"}
        return "taken"

    return len(data), read


def _sealed(record: Any) -> bytes:
    return sealed(record) if isinstance(record, dict) and record else as_json(record) + b"\n"


# -- what a tracking server says


def records(folder: Path, rng: random.Random) -> tuple[int, Callable[[], str]]:
    """What a tracking server says: tags, parameters, metrics, a search space."""
    space = {
        "architectures": {"relu+l1": {"l1_coefficient": {"values": [1]}}},
        "search": {"kind": "coverage", "l0": [5, 50], "bins": 4},
    }
    tags = {
        "prolu.kind": "trial",
        "prolu.trial": "3",
        "prolu.state": "finished",
        "prolu.architecture": "relu+l1",
        "prolu.checkpoint": "/x",
    }
    params = {
        "sae.nonlinearity": "relu",
        "sae.penalty": "l1",
        "training.l1_coefficient": "0.5",
        "training.lr": "1e-3",
        "seed": "0",
    }
    metrics = {"l0": 12.0, "ce_degradation": 0.5, "steps": 10.0, "tokens": 100.0, "wall_s": 2.0, "train/tokens": 50.0}
    answer = mutated_tree({"space": space, "tags": tags, "params": params, "metrics": metrics}, rng)
    text = as_json(answer.get("space")) if isinstance(answer, dict) else b""
    text = mutated_bytes(text, rng) if rng.random() < 0.5 else text
    as_tag = rng.random() < 0.5

    def table(name: str, kind: type) -> dict[str, Any]:
        # MLflow's own client makes texts of tags and parameters and numbers of metrics before anyone sees them.
        found = answer.get(name) if isinstance(answer, dict) else None
        pairs = found.items() if isinstance(found, dict) else ()
        if kind is str:
            return {str(key): str(value) for key, value in pairs}
        return {str(key): _number(value) for key, value in pairs}

    def read() -> str:
        run = SimpleNamespace(
            info=SimpleNamespace(run_id="0" * 32, run_name="r", experiment_id="1", status="RUNNING"),
            data=SimpleNamespace(tags=table("tags", str), params=table("params", str), metrics=table("metrics", float)),
        )
        trial = StoredTrial(record_from_run(run), run.data.metrics, run.data.params, run.data.tags, "r")  # type: ignore[arg-type] - stands in for MLflow's Run
        parent = SimpleNamespace(
            info=run.info, data=SimpleNamespace(tags={"prolu.space": text.decode("utf-8", "replace")} if as_tag else {})
        )
        found = read_space(_Server(text), parent)  # type: ignore[arg-type] - stands in for MLflow's client
        facts = SweepFacts(name="n", run_id="0" * 32, tracking_uri="sqlite://", run_status="RUNNING", space=found, num_trials=3)
        sweep = Sweep((facts,), (trial, trial))
        to_json({"status": sweep.status(), "frontier": sweep.frontier(), "best": sweep.best(60)})
        return "taken"

    return len(text) + 1000, read


class _Server:
    """A tracking server that hands out one artifact."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def download_artifacts(self, run_id: str, path: str, folder: str) -> str:
        """Puts the artifact into the folder, as MLflow's client does."""
        target = Path(folder) / path
        target.write_bytes(self._content)
        return str(target)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
