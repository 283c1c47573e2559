"""Everything the report shows, gathered from the tracking store once: runs, courses of training, configuration, cost."""

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prolu_tune.report.axes import in_order
from prolu_tune.results.filters import StoredTrial
from prolu_tune.results.query import Sweep
from prolu_tune.results.records import finite
from prolu_tune.results.status import coverage_target
from prolu_tune.results.store import open_store, store_errors
from prolu_tune.search.coverage import CoverageTarget

if TYPE_CHECKING:
    from mlflow import MlflowClient

COURSE_POINTS = 48
"""Points kept of a course, denser where training is young."""
COURSES_PER_ARCHITECTURE = 8
EXTRA_METRICS = ("ce_degradation_bos_kept", "magnitude_slope")
"""Metrics beside the record's that the report knows how to show, where a sweep has them."""
NOT_SETTINGS = ("seed", "sae.nonlinearity", "sae.penalty")

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Course:
    """One run's training, thinned out."""

    run_id: str
    label: str
    architecture: str
    l1_coefficient: float
    points: list[tuple[int, float, float | None]]
    """(step, L0 on the training batches, learning rate)."""
    resampled: list[tuple[int, int]]
    """(step, latents replaced)."""


@dataclass(frozen=True, kw_only=True)
class SweepData:
    """A sweep as the report needs it; nothing here refers back to the store."""

    name: str
    run_id: str
    rows: list[Row]
    """Every trial: its record, `label`, `group`, `frac_dead`, `message`, `log` and what `EXTRA_METRICS` names."""
    courses: list[Course]
    settings: dict[str, str]
    """Parameters that all trials share."""
    varied: dict[str, list[str]]
    """Parameters in which trials differ, with their values."""
    versions: dict[str, str]
    space: Mapping[str, Any]
    num_trials: int | None
    target: CoverageTarget | None
    """Range of L0 in whose bins coverage is counted; None while it has none."""
    span_s: float | None
    """From the sweep's start to its end, as MLflow's clock saw it; None while it runs."""

    @property
    def finished(self) -> list[Row]:
        """The trials that can be compared."""
        return [row for row in self.rows if row["state"] == "finished"]

    @property
    def architectures(self) -> list[str]:
        """Architectures with a finished trial, in their order."""
        return in_order(row["architecture"] for row in self.finished)

    @property
    def seeds(self) -> int:
        """Seeds per setting, as most settings have it."""
        sizes: dict[tuple[str, ...], set[int]] = {}
        for row in self.finished:
            sizes.setdefault((row["architecture"], row["group"]), set()).add(row["seed"])
        return round(statistics.median(len(seeds) for seeds in sizes.values())) if sizes else 0


def collect(sweep: Sweep) -> SweepData:
    """Returns the data of a sweep.

    Raises:
        SurroundingsError: if the tracking store stops answering.
    """
    varied = _varied(sweep.trials)
    rows = [
        _row(trial, record, [key for key in varied if key not in NOT_SETTINGS])
        for trial, record in zip(sweep.trials, sweep.records, strict=True)
    ]
    facts = sweep.facts[0]
    client = open_store(facts.tracking_uri)
    with store_errors(facts.tracking_uri):
        courses = [_course(client, row) for row in _chosen_for_courses(rows)]
        parent = client.get_run(facts.run_id).info
    return SweepData(
        name=sweep.name,
        run_id=facts.run_id,
        rows=rows,
        courses=[course for course in courses if len(course.points) > 1],
        settings=_shared(sweep.trials),
        varied=varied,
        versions=_versions(client, rows),
        space=facts.space or {},
        num_trials=facts.num_trials,
        target=coverage_target(sweep),
        span_s=_span_s(parent.start_time, parent.end_time),
    )


def _span_s(start_ms: int | None, end_ms: int | None) -> float | None:
    return (end_ms - start_ms) / 1000 if start_ms is not None and end_ms else None


def _row(trial: StoredTrial, record: Mapping[str, Any], grouping: Sequence[str]) -> Row:
    alive = record["frac_alive"]
    return {
        **record,
        **{name: finite(trial.metrics.get(name)) for name in EXTRA_METRICS},
        "frac_dead": None if alive is None else 1 - alive,
        "label": trial.label,
        "group": " ".join(f"{key}={trial.params.get(key)}" for key in grouping),
        "message": trial.tags.get("prolu.message"),
        "log": trial.tags.get("prolu.log"),
    }


def _varied(trials: Sequence[StoredTrial]) -> dict[str, list[str]]:
    keys = dict.fromkeys(key for trial in trials for key in trial.params)
    values = {key: list(dict.fromkeys(trial.params.get(key, "-") for trial in trials)) for key in keys}
    return {key: sorted(found, key=_numeric) for key, found in values.items() if len(found) > 1}


def _shared(trials: Sequence[StoredTrial]) -> dict[str, str]:
    if not trials:
        return {}
    varied = _varied(trials)
    return {key: value for key, value in trials[0].params.items() if key not in varied}


def _numeric(text: str) -> tuple[int, float, str]:
    number = finite(text)
    return (1, 0.0, text) if number is None else (0, number, text)


def _chosen_for_courses(rows: Sequence[Row]) -> list[Row]:
    """Returns one run of each setting, at most some per architecture, evenly over the coefficients."""
    chosen: list[Row] = []
    for architecture in in_order(row["architecture"] for row in rows if row["architecture"]):
        settings: dict[str, Row] = {}
        own = [row for row in rows if row["architecture"] == architecture and row["l1_coefficient"] is not None]
        for row in sorted(own, key=lambda row: (row["l1_coefficient"], row["seed"] or 0)):
            settings.setdefault(row["group"], row)
        runs = list(settings.values())
        count = min(len(runs), COURSES_PER_ARCHITECTURE)
        chosen += [runs[round(i * (len(runs) - 1) / max(1, count - 1))] for i in range(count)]
    return chosen


def _course(client: "MlflowClient", row: Row) -> Course:
    history = {
        key: {metric.step: finite(metric.value) for metric in client.get_metric_history(row["run_id"], f"train/{key}")}
        for key in ("l0", "lr", "num_resampled")
    }
    steps = _thinned(sorted(step for step, value in history["l0"].items() if value is not None))
    return Course(
        run_id=row["run_id"],
        label=row["label"],
        architecture=row["architecture"],
        l1_coefficient=row["l1_coefficient"],
        points=[(step, history["l0"][step] or 0.0, history["lr"].get(step)) for step in steps],
        resampled=[(step, int(number)) for step, number in sorted(history["num_resampled"].items()) if number is not None],
    )


def _thinned(steps: Sequence[int]) -> list[int]:
    """Returns at most `COURSE_POINTS` of the steps: all of the first few, then evenly."""
    if len(steps) <= COURSE_POINTS:
        return list(steps)
    early = list(steps[: COURSE_POINTS // 4])
    late = steps[len(early) :]
    count = COURSE_POINTS - len(early)
    return early + [late[round(i * (len(late) - 1) / (count - 1))] for i in range(count)]


def _versions(client: "MlflowClient", rows: Sequence[Row]) -> dict[str, str]:
    """Returns the versions noted in the first trained autoencoder that can be read; empty where none can."""
    from mlflow.exceptions import MlflowException

    for row in rows:
        if row["state"] != "finished":
            continue
        local = Path(row["checkpoint"] or "") / "config.json"
        with tempfile.TemporaryDirectory(prefix="prolu-report-") as folder:
            try:
                path = local if local.is_file() else Path(client.download_artifacts(row["run_id"], "sae/config.json", folder))
                versions = json.loads(path.read_text(encoding="utf-8")).get("versions", {})
            except (MlflowException, OSError, ValueError):
                # Artifacts may be out of reach where the database is not; the report then does without versions.
                return {}
            return {str(name): str(version) for name, version in versions.items()}
    return {}
