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
from typing import Any, Literal

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
    outcome: Literal["finished", "diverged", "stopped"]
    message: str | None
    predicted_l0: float | None
    numerics: str | None = None
    """What changed in the numerics halfway, by permission."""
    notes: str | None = None
    """What a person should know besides."""


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
    judge = _Judge(rows, plan, stop_rule)

    def report_row(row: Row) -> str | None:
        rows.append(row)
        report(row)
        return judge.decide()

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
        _check_whole(rows, result, folder)
        trained = _store_trained(folder, config, result, judge.predicted_l0)
    # Here and not only when training ends: who trained it may have been killed before.
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    sync_folder(folder)
    return _result(trained, judge.course(), folder / "sae", evaluate)


def _check_whole(rows: "MetricsFile", result: TrainingResult, folder: Path) -> None:
    if len(rows.rows) != result.rows:
        raise SurroundingsError(
            f"{folder / 'metrics.jsonl'} holds {len(rows.rows)} of the {result.rows} rows of this trial: something cut it; "
            f"remove the folder {folder}, then run the same command again: the trial starts afresh, to the same result"
        )


class _Judge:
    """Asks the rule whether a trial ends early, and remembers where it was going to land."""

    def __init__(self, rows: "MetricsFile", plan: TrialPlan, rule: StopRule | None) -> None:
        self._rows, self._plan, self._rule = rows, plan, rule
        self.predicted_l0: float | None = None

    def course(self) -> list[tuple[float, float]]:
        """Returns (share of training done, L0) over the trial."""
        return [(row["step"] / self._plan.num_steps, row["l0"]) for row in self._rows.rows if row["l0"] is not None]

    def decide(self) -> str | None:
        """Returns what `training.train` is to be answered."""
        if self._rule is None:
            return None
        stop, self.predicted_l0 = self._rule.decide(self.course())
        return "stop" if stop else None


def _result(
    trained: TrainedTrial, course: list[tuple[float, float]], sae_folder: Path, evaluate: Callable[[Path], dict[str, float]]
) -> TrialResult:
    """Returns how the trial ended; one that came to its end is evaluated."""
    record: dict[str, float | None] = {"steps": trained.steps, "tokens": trained.tokens, "wall_s": trained.wall_s}
    checkpoint = message = predicted_l0 = None
    match trained.outcome:
        case "diverged":
            message = trained.message
        case "stopped":
            record["l0"], message, predicted_l0 = course[-1][1], trained.message, trained.predicted_l0
        case _:
            record |= evaluate(sae_folder)
            save_metrics(sae_folder, record)
            checkpoint = str(sae_folder)
    return TrialResult(
        outcome=trained.outcome,
        record=record,
        message=message,
        checkpoint=checkpoint,
        course=course,
        predicted_l0=predicted_l0,
        numerics=trained.numerics,
        notes=trained.notes,
    )


def _store_trained(folder: Path, config: TrialConfig, result: TrainingResult, predicted_l0: float | None) -> TrainedTrial:
    """The SAE folder is whole before `trained.json` says so, and only then the checkpoints go."""
    assert result.outcome != "interrupted"
    trained = TrainedTrial(
        steps=result.step,
        tokens=result.tokens,
        wall_s=result.wall_s,
        outcome=result.outcome,
        message=result.message,
        predicted_l0=predicted_l0,
        numerics="; ".join(result.numerics_changes) or None,
        notes="; ".join(result.notes) or None,
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
