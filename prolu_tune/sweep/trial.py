"""One trial as a plain function: train, save, evaluate; resumes wherever the last attempt ended. Needs no Ray.

A trial's folder tells how far it came: checkpoints while it trains, then `sae/` with `trained.json`, then the result
in the study. Rows of metrics go to `metrics.jsonl`, one JSON object a line, each step once.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from prolu_tune.config.resolve import TrialPlan
from prolu_tune.config.trial import TrialConfig
from prolu_tune.durable import replace_file
from prolu_tune.sae.folder import save_sae
from prolu_tune.sweep.study import StopRule, TrialResult
from prolu_tune.training.trainer import TrainingResult, train

Row = dict[str, Any]
Interrupted = None
"""What `run_trial` returns when it was asked to stop: the trial has no result yet."""


@dataclass(frozen=True, kw_only=True)
class TrainedTrial:
    """What evaluation cannot know and the record needs; stored when training ends."""

    steps: int
    tokens: int
    wall_s: float
    outcome: str
    message: str | None
    predicted_l0: float | None


def run_trial(
    config: TrialConfig,
    *,
    plan: TrialPlan,
    batches: Callable[[int], Iterator[Tensor]],
    evaluate: Callable[[Path], dict[str, float]],
    report: Callable[[Row], None],
    folder: Path,
    device: str,
    should_stop: Callable[[], bool],
    stop_rule: StopRule | None = None,
) -> TrialResult | None:
    """Returns the trial's result, or None if `should_stop` interrupted it; the same call then goes on.

    Args:
        batches: (first token of the stream) -> iterator of raw activations (batch_size, d_in).
        evaluate: (SAE folder) -> held-out metrics under the names of the record.
        report: called with each row of metrics.
        folder: the trial's own folder; made if missing.
        should_stop: asked after each step; true: save and leave.
        stop_rule: decides whether the trial ends early.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = MetricsFile(folder / "metrics.jsonl")

    predicted_l0: float | None = None

    def report_row(row: Row) -> str | None:
        nonlocal predicted_l0
        rows.append(row)
        report(row)
        if stop_rule is None:
            return None
        stop, predicted_l0 = stop_rule.decide(_course(rows, plan))
        return "stop" if stop else None

    trained = _read_trained(folder)
    if trained is None:
        result = train(
            config,
            plan=plan,
            batches=batches,
            report=report_row,
            checkpoint_dir=folder / "checkpoints",
            device=device,
            should_stop=should_stop,
        )
        if result.outcome == "interrupted":
            return Interrupted
        trained = _store_trained(folder, config, result, predicted_l0)
    record: dict[str, float | None] = {"steps": trained.steps, "tokens": trained.tokens, "wall_s": trained.wall_s}
    course = _course(rows, plan)
    if trained.outcome == "diverged":
        return TrialResult(outcome="diverged", record=record, message=trained.message, course=course)
    if trained.outcome == "stopped":
        record["l0"] = course[-1][1]
        return TrialResult(
            outcome="stopped", record=record, message=trained.message, course=course, predicted_l0=trained.predicted_l0
        )
    metrics = evaluate(folder / "sae")
    save_metrics(folder / "sae", record | metrics)
    return TrialResult(outcome="finished", record=record | metrics, checkpoint=str(folder / "sae"), course=course)


def _course(rows: "MetricsFile", plan: TrialPlan) -> list[tuple[float, float]]:
    return [(row["step"] / plan.num_steps, row["l0"]) for row in rows.rows if row["l0"] is not None]


def _store_trained(folder: Path, config: TrialConfig, result: TrainingResult, predicted_l0: float | None) -> TrainedTrial:
    """The SAE folder is whole before `trained.json` says so, and only then the checkpoints go."""
    trained = TrainedTrial(
        steps=result.step,
        tokens=result.tokens,
        wall_s=result.wall_s,
        outcome=result.outcome,
        message=result.message,
        predicted_l0=predicted_l0,
    )
    if result.outcome == "finished":
        save_sae(result.sae, folder / "sae", config=config.model_dump(mode="json"), versions=versions(), metrics={})
    replace_file(folder / "trained.json", [json.dumps(asdict(trained)).encode()])
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return trained


def _read_trained(folder: Path) -> TrainedTrial | None:
    path = folder / "trained.json"
    return TrainedTrial(**json.loads(path.read_bytes())) if path.exists() else None


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on, by package."""
    return {name: metadata.version(name) for name in ("prolu-tune", "torch", "transformer-lens", "transformers", "datasets")}


def save_metrics(sae_folder: Path, metrics: dict[str, Any]) -> None:
    """Puts a trial's metrics into the `config.json` of its SAE folder."""
    path = sae_folder / "config.json"
    document = json.loads(path.read_bytes()) | {"metrics": metrics}
    replace_file(path, [json.dumps(document, indent=1).encode()])


class MetricsFile:
    """Rows of metrics on disk, one JSON object a line, each step once whatever crashes and resumes happen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        data = path.read_bytes() if path.exists() else b""
        self._lines = [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
        self.rows: list[Row] = [json.loads(line) for line in self._lines]
        if len(data) != sum(map(len, self._lines)):
            self._rewrite()

    def append(self, row: Row) -> None:
        """Adds a row; rows of the same or a later step, left by an attempt that died, go first."""
        row = {key: value if math.isfinite(value) else None for key, value in row.items()}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        kept = [i for i, old in enumerate(self.rows) if old["step"] < row["step"]]
        stale = len(kept) < len(self.rows)
        self._lines = [*(self._lines[i] for i in kept), line]
        self.rows = [*(self.rows[i] for i in kept), row]
        if stale:
            self._rewrite()
            return
        with self._path.open("ab") as out:
            out.write(line)

    def _rewrite(self) -> None:
        replace_file(self._path, self._lines)
