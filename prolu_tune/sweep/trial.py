"""One trial as a plain function: train, save, evaluate; resumes wherever the last attempt ended. Needs no Ray.

A trial's folder tells how far it came: checkpoints while it trains, then `sae/` with `trained.json`, then the result
in the study. Rows of metrics go to `metrics.jsonl`, one JSON object a line, each step once.
"""

import functools
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from prolu_tune import __version__
from prolu_tune.config.resolve import TrialPlan
from prolu_tune.config.trial import TrialConfig
from prolu_tune.durable import DamagedLineError, extend_file, replace_file, sealed, sync_folder, unsealed
from prolu_tune.errors import SurroundingsError
from prolu_tune.sae.folder import save_metrics, save_sae
from prolu_tune.sweep.files import alone_in_folder, read_stored
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
    numerics: str | None = None
    """What changed in the numerics halfway, by permission."""


@alone_in_folder
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
    accept_numerics: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> TrialResult | None:
    """Returns the trial's result, or None if `should_stop` interrupted it; the same call then goes on.

    Args:
        batches: (first token of the stream) -> iterator of raw activations (batch_size, d_in).
        evaluate: (SAE folder) -> held-out metrics under the names of the record.
        report: called with each row of metrics.
        folder: the trial's own folder; made if missing.
        should_stop: asked after each step; true: save and leave.
        stop_rule: decides whether the trial ends early.
        accept_numerics: go on from a checkpoint that was made with other numerics, and say so in the result.
        say: is told what a person should know at once.

    Raises:
        OtherNumericsError: if the newest checkpoint was made with other numerics, and that is not accepted.
    """
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
            accept_numerics=accept_numerics,
            say=say,
        )
        if result.outcome == "interrupted":
            return Interrupted
        if len(rows.rows) != result.rows:
            raise SurroundingsError(
                f"{folder / 'metrics.jsonl'} holds {len(rows.rows)} of the {result.rows} rows of this trial: something cut it; "
                f"remove the folder {folder}, then run the same command again: the trial starts afresh, to the same result"
            )
        trained = _store_trained(folder, config, result, predicted_l0)
    # Here and not only when training ends: who trained it may have been killed before.
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    sync_folder(folder)
    record: dict[str, float | None] = {"steps": trained.steps, "tokens": trained.tokens, "wall_s": trained.wall_s}
    course = _course(rows, plan)
    if trained.outcome == "diverged":
        return TrialResult(outcome="diverged", record=record, message=trained.message, course=course, numerics=trained.numerics)
    if trained.outcome == "stopped":
        record["l0"] = course[-1][1]
        return TrialResult(
            outcome="stopped",
            record=record,
            message=trained.message,
            course=course,
            predicted_l0=trained.predicted_l0,
            numerics=trained.numerics,
        )
    metrics = evaluate(folder / "sae")
    save_metrics(folder / "sae", record | metrics)
    return TrialResult(
        outcome="finished",
        record=record | metrics,
        checkpoint=str(folder / "sae"),
        course=course,
        numerics=trained.numerics,
    )


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
        numerics="; ".join(result.numerics_changes) or None,
    )
    if result.outcome == "finished":
        save_sae(result.sae, folder / "sae", config=config.model_dump(mode="json"), versions=versions(), metrics={})
    replace_file(folder / "trained.json", [sealed(asdict(trained))])
    return trained


def _read_trained(folder: Path) -> TrainedTrial | None:
    path = folder / "trained.json"
    return TrainedTrial(**read_stored(path)) if path.exists() else None


@functools.cache
def versions() -> dict[str, str]:
    """Returns the versions that a result depends on, by package."""
    others = {name: metadata.version(name) for name in ("torch", "transformer-lens", "transformers", "datasets")}
    # On the machines of a cluster prolu-tune is code that came with the job, not an installed package.
    return {"prolu-tune": __version__} | others


class MetricsFile:
    """Rows of metrics on disk, one sealed line each, each step once whatever crashes and resumes happen."""

    def __init__(self, path: Path) -> None:
        """Reads the rows of earlier attempts; a last one that a crash cut off goes.

        Raises:
            SurroundingsError: if a row is damaged, which no crash of ours can do.
        """
        self._path = path
        data = path.read_bytes() if path.exists() else b""
        self._lines = data.splitlines(keepends=True)
        if self._lines and not self._lines[-1].endswith(b"\n"):
            self._lines.pop()
        try:
            self.rows: list[Row] = [_row(line) for line in self._lines]
        except DamagedLineError as error:
            raise SurroundingsError(
                f"{path} is damaged: {error}; remove the folder {path.parent}, then run the same command again: "
                "the trial starts afresh, to the same result"
            ) from None
        if len(data) != sum(map(len, self._lines)):
            self._rewrite()

    def append(self, row: Row) -> None:
        """Adds a row; rows of the same or a later step, left by an attempt that died, go first."""
        row = {key: value if math.isfinite(value) else None for key, value in row.items()}
        line = sealed(row)
        kept = [i for i, old in enumerate(self.rows) if old["step"] < row["step"]]
        stale = len(kept) < len(self.rows)
        self._lines = [*(self._lines[i] for i in kept), line]
        self.rows = [*(self.rows[i] for i in kept), row]
        if stale:
            self._rewrite()
            return
        # Synced, although a resumed trial repeats its last rows: those before the last checkpoint are not repeated.
        extend_file(self._path, line, at=sum(map(len, self._lines)) - len(line))

    def _rewrite(self) -> None:
        replace_file(self._path, self._lines)


def _row(line: bytes) -> Row:
    row = unsealed(line)
    numbers = all(isinstance(value, int | float) or value is None for value in row.values())
    if type(row.get("step")) is not int or not numbers:
        raise DamagedLineError("a row holds something else than a step and numbers")
    return row
