"""How a sweep stands, from what MLflow knows: states, coverage, failures with their logs, pace and time left."""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from prolu_tune.results.filters import StoredTrial
from prolu_tune.results.records import finite
from prolu_tune.search.coverage import CoverageTarget, coverage_of
from prolu_tune.search.parts import CoverageSearch

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from prolu_tune.results.query import Sweep

GRID_BINS = 16
"""Bins in which the coverage of a sweep without a target is counted."""
MAX_SPACE_BYTES = 1_000_000
TROUBLED = ("failed", "diverged")


def status_document(sweep: "Sweep") -> dict[str, Any]:
    """Returns the document of `prolu-tune status --json`, without its schema.

    `states` counts trials; `pending` are those of a known total that have not begun. `coverage` is over the target of
    a coverage search, else over the range of L0 that the sweep's finished trials span (left out while they span none).
    `tokens_per_s` is what one trial trains; `time_left_s` assumes the pace of the trials that ended.
    """
    states = Counter(trial.record["state"] for trial in sweep.trials)
    planned = [facts.num_trials for facts in sweep.facts]
    total = sum(number for number in planned if number is not None) if None not in planned else None
    pending = max(0, (total or 0) - len(sweep.trials))
    pace = _pace(sweep, unfinished=pending + states["running"] + states["interrupted"])
    return {
        "sweep": sweep.name,
        "run_id": sweep.run_id,
        "run_status": sweep.facts[0].run_status,
        "total": total,
        "states": dict(states) | ({"pending": pending} if pending else {}),
        "coverage": coverage_by_architecture(sweep),
        **pace,
        "running": [_running(trial) for trial in sweep.trials if trial.record["state"] == "running"],
        "failed": [_trouble(trial) for trial in sweep.trials if trial.record["state"] in TROUBLED],
        "runs": sweep.records,
    }


def coverage_by_architecture(sweep: "Sweep") -> dict[str, dict[str, Any]]:
    """Returns for each architecture its target, bins, filled bins and largest gap; empty without a target."""
    target = coverage_target(sweep)
    if target is None:
        return {}
    named = [name for facts in sweep.facts for name in (facts.space or {}).get("architectures", {})]
    seen = [trial.record["architecture"] for trial in sweep.trials]
    return {
        name: coverage_of(_final_l0s(sweep.trials, name), target).as_record() for name in dict.fromkeys([*named, *seen]) if name
    }


def coverage_target(sweep: "Sweep") -> CoverageTarget | None:
    """Returns the target of a coverage search, else the range of L0 that all finished trials together span."""
    search = (sweep.facts[0].space or {}).get("search") or {}
    if search.get("kind") == "coverage" and isinstance(search.get("l0"), list | tuple):
        low, high = search["l0"]
        return CoverageTarget(float(low), float(high), int(search.get("bins") or GRID_BINS))
    seen = [l0 for l0 in _final_l0s(sweep.trials, None) if l0 > 0]
    if len(set(seen)) < 2:
        return None
    return CoverageTarget(min(seen), max(seen), GRID_BINS)


def read_space(client: "MlflowClient", parent: "Run") -> dict[str, Any] | None:
    """Returns the search space noted on a parent run: from its tag, or from the artifact where the tag was cut short."""
    from mlflow.exceptions import MlflowException

    space = _mapping(parent.data.tags.get("prolu.space", ""))
    if space is not None:
        return space
    with tempfile.TemporaryDirectory(prefix="prolu-space-") as folder:
        try:
            client.download_artifacts(parent.info.run_id, "space.json", folder)
        except (MlflowException, OSError):
            # Artifacts may be out of reach where the database is not; a query then does without the space.
            return None
        with (Path(folder) / "space.json").open("rb") as file:
            return _mapping(file.read(MAX_SPACE_BYTES))


def _pace(sweep: "Sweep", *, unfinished: int) -> dict[str, float | None]:
    """Returns tokens per second of one trial and the seconds left, None where that is not known."""
    ended = [trial.record for trial in sweep.trials if trial.record["wall_s"] and trial.record["state"] == "finished"]
    wall_s = sum(record["wall_s"] for record in ended)
    left: float | None = None
    if not unfinished:
        left = 0.0
    elif ended and sweep.facts[0].run_status == "RUNNING":
        running = [trial for trial in sweep.trials if trial.record["state"] == "running"]
        under_way = sum(_share(trial) or 0.0 for trial in running)
        left = (unfinished - under_way) * wall_s / len(ended) / max(1, len(running))
    return {
        "tokens_per_s": sum(float(record["tokens"] or 0) for record in ended) / wall_s if wall_s else None,
        "time_left_s": left,
    }


def _running(trial: StoredTrial) -> dict[str, Any]:
    """Returns a running trial with its latest training metrics."""
    return {
        "run_id": trial.record["run_id"],
        "trial": trial.record["trial"],
        "label": trial.label,
        "share": _share(trial),
        "tokens": finite(trial.metrics.get("train/tokens")),
        "l0": finite(trial.metrics.get("train/l0")),
        "loss": finite(trial.metrics.get("train/loss")),
    }


def _share(trial: StoredTrial) -> float | None:
    """Returns the share of its tokens that a running trial has read."""
    done, wanted = finite(trial.metrics.get("train/tokens")), finite(trial.params.get("training.num_tokens"))
    return min(1.0, done / wanted) if done is not None and wanted else None


def _trouble(trial: StoredTrial) -> dict[str, Any]:
    """Returns why a trial failed or diverged, and where its log is."""
    return {
        "run_id": trial.record["run_id"],
        "trial": trial.record["trial"],
        "label": trial.label,
        "state": trial.record["state"],
        "message": trial.tags.get("prolu.message"),
        "log": trial.tags.get("prolu.log"),
    }


def _final_l0s(trials: Sequence[StoredTrial], architecture: str | None) -> list[float]:
    records = [trial.record for trial in trials if trial.record["state"] == "finished"]
    return [r["l0"] for r in records if r["l0"] is not None and architecture in (None, r["architecture"])]


def _mapping(text: str | bytes) -> dict[str, Any] | None:
    """Returns the space in a text that a server gave, None if it is none; a search that is none of ours is left out."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("architectures", {}), dict):
        return None
    if not _sound_search(value.get("search", {})):
        del value["search"]
    return value


def _sound_search(search: Any) -> bool:
    if not isinstance(search, dict) or search.get("kind") != "coverage":
        return isinstance(search, dict)
    try:
        CoverageSearch.model_validate(search)
    except ValidationError:
        return False
    return True
