"""One trial as a plain function: train, save, evaluate; resumes wherever the last attempt ended. Needs no Ray.

A trial's folder tells how far it came: checkpoints while it trains, then `sae/` with `trained.json`, then the result
in the study. Rows of metrics go to `metrics.jsonl`, one JSON object a line, each step once.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from prolu_tune.config.resolve import TrialPlan
from prolu_tune.config.trial import TrialConfig
from prolu_tune.sae.folder import save_sae
from prolu_tune.sweep.files import replace_file
from prolu_tune.sweep.study import TrialResult
from prolu_tune.training.trainer import TrainingResult, train

Row = dict[str, float]
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


def run_trial(
    config: TrialConfig,
    *,
    plan: TrialPlan,
    batches: Callable[[int], Iterator[Tensor]],
    evaluate: Callable[[Path], dict[str, float]],
    report: Callable[[Row], str | None],
    folder: Path,
    device: str,
    should_stop: Callable[[], bool],
) -> TrialResult | None:
    """Returns the trial's result, or None if `should_stop` interrupted it; the same call then goes on.

    Args:
        batches: (first token of the stream) -> iterator of raw activations (batch_size, d_in).
        evaluate: (SAE folder) -> held-out metrics under the names of the record.
        report: called with each row of metrics; may answer "stop" to end training early.
        folder: the trial's own folder; made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = MetricsFile(folder / "metrics.jsonl")

    def report_row(row: Row) -> str | None:
        rows.append(row)
        return report(row)

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
        trained = _store_trained(folder, config, result)
    record: dict[str, float | None] = {"steps": trained.steps, "tokens": trained.tokens, "wall_s": trained.wall_s}
    course = [(row["step"] / plan.num_steps, row["l0"]) for row in rows.read() if row.get("l0") is not None]
    if trained.outcome == "diverged":
        return TrialResult(outcome="diverged", record=record, message=trained.message, course=course)
    if trained.outcome == "stopped":
        return TrialResult(outcome="stopped", record=record | {"l0": course[-1][1]}, message=trained.message, course=course)
    metrics = evaluate(folder / "sae")
    save_metrics(folder / "sae", record | metrics)
    return TrialResult(outcome="finished", record=record | metrics, checkpoint=str(folder / "sae"), course=course)


def _store_trained(folder: Path, config: TrialConfig, result: TrainingResult) -> TrainedTrial:
    """The SAE folder is whole before `trained.json` says so, and only then the checkpoints go."""
    trained = TrainedTrial(
        steps=result.step, tokens=result.tokens, wall_s=result.wall_s, outcome=result.outcome, message=result.message
    )
    if result.outcome == "finished":
        save_sae(result.sae, folder / "sae", config=config.model_dump(mode="json"))
    replace_file(folder / "trained.json", json.dumps(asdict(trained)).encode())
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return trained


def _read_trained(folder: Path) -> TrainedTrial | None:
    path = folder / "trained.json"
    return TrainedTrial(**json.loads(path.read_bytes())) if path.exists() else None


def save_metrics(sae_folder: Path, metrics: dict[str, Any]) -> None:
    """Puts a trial's metrics into the `config.json` of its SAE folder."""
    path = sae_folder / "config.json"
    document = json.loads(path.read_bytes()) | {"metrics": metrics}
    replace_file(path, json.dumps(document, indent=1).encode())


class MetricsFile:
    """Rows of metrics on disk, one JSON object a line, each step once whatever crashes and resumes happen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cut(lambda step: True)

    def read(self) -> list[Row]:
        """Returns all whole rows."""
        return [json.loads(line) for line in self._lines()]

    def append(self, row: Row) -> None:
        """Adds a row; rows of the same or a later step, left by an attempt that died, go first."""
        if self._last_step >= row["step"]:
            self._cut(lambda step: step < row["step"])
        with self._path.open("ab") as out:
            out.write(json.dumps(row).encode() + b"\n")
        self._last_step = int(row["step"])

    def _lines(self) -> list[bytes]:
        if not self._path.exists():
            return []
        return [line for line in self._path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def _cut(self, keep: Callable[[int], bool]) -> None:
        steps = [(int(json.loads(line)["step"]), line) for line in self._lines()]
        kept = [(step, line) for step, line in steps if keep(step)]
        self._last_step = kept[-1][0] if kept else -1
        whole = b"".join(line for _, line in kept)
        if self._path.exists() and os.path.getsize(self._path) != len(whole):  # noqa: PTH202 - one call instead of a stat object
            replace_file(self._path, whole)
