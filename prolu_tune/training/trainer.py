"""Trains one autoencoder on a stream of activations; stops, resumes and ends in the same bits."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from prolu_tune.config.resolve import TrialPlan
from prolu_tune.config.trial import TrialConfig
from prolu_tune.metrics import Numbers
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.training.checkpoint import load_newest, save_checkpoint
from prolu_tune.training.prefetch import prefetched
from prolu_tune.training.state import Trainer

Outcome = Literal["finished", "diverged", "interrupted", "stopped"]
Report = Callable[[Numbers], str | None]
CHECKPOINT_SHARE = 0.02
"""Checkpoints are spaced so that writing them takes less than this share of the time."""

__all__ = ["Outcome", "Report", "Trainer", "TrainingResult", "train"]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a training ended."""

    outcome: Outcome
    sae: SparseAutoencoder
    step: int
    """Batches trained on."""
    tokens: int
    """Activations read from the stream, those consumed by resampling included."""
    rows: int
    """Rows reported since the very start, those before a resume included."""
    wall_s: float
    """Seconds of training, those before a resume included."""
    message: str
    """One sentence on the outcome."""
    notes: tuple[str, ...]
    """What a person should know besides: unresolved windows, too few candidates, damaged checkpoints."""
    numerics_changes: tuple[str, ...]
    """Where the training went on with other numerics, by permission, and what changed; empty: nowhere."""
    frac_alive: float
    """Share of latents that are not dead over the last firing window; NaN before any step."""
    frac_alive_tokens: int
    """Tokens of that window."""


def train(
    config: TrialConfig,
    *,
    plan: TrialPlan,
    batches: Callable[[int], Iterator[Tensor]],
    report: Report,
    checkpoint_dir: Path | None,
    device: str,
    should_stop: Callable[[], bool],
    accept_numerics: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> TrainingResult:
    """Trains, or goes on from the newest checkpoint, until the plan ends, the loss is not finite, or someone says stop.

    Args:
        config: the trial.
        plan: its steps.
        batches: gives the stream's batches of raw activations (batch_size, d_in) from a token offset on.
        report: receives each row of metrics; answers `stop` to end the trial early. After a resume it may receive a
            row again, the same to the last bit.
        checkpoint_dir: where checkpoints lie; None: none are written or read.
        device: torch device.
        should_stop: asked after each batch; once true, a checkpoint is written and the outcome is `interrupted`.
        accept_numerics: go on from a checkpoint that was made with other numerics; see `TrainingResult.numerics_changes`.
        say: is told at once what a person should know before the training ends, such as a damaged checkpoint.

    Raises:
        InputError: if the device cannot do what the configuration asks for, or the checkpoint is another trial's.
        OtherNumericsError: if the checkpoint was made with other numerics, and that is not accepted.
        SurroundingsError: if a checkpoint cannot be written or read.
        RuntimeError: if the stream ends too early.
    """
    trainer = Trainer(config, plan, device=device)
    for note in trainer.notes:
        say(note)
    if checkpoint_dir is not None:
        checkpoint, warnings = load_newest(checkpoint_dir, trainer.tensor_specs())
        for warning in warnings:
            say(warning)
        if checkpoint is not None:
            trainer.load_state_dict(checkpoint, accept_numerics=accept_numerics)
        trainer.notes += warnings
    clock = _Clock(trainer, checkpoint_dir, every_s=config.training.checkpoint_every_s)
    stream = prefetched(batches(trainer.tokens), trainer.device)
    outcome, message = _run(trainer, stream, report, clock, should_stop)
    clock.stop()
    frac_alive, frac_alive_tokens = trainer.frac_alive()
    return TrainingResult(
        outcome=outcome,
        sae=trainer.sae,
        step=trainer.step,
        tokens=trainer.tokens,
        rows=trainer.rows,
        wall_s=trainer.wall_s,
        message=message,
        notes=tuple(trainer.notes),
        numerics_changes=tuple(trainer.numerics_changes),
        frac_alive=frac_alive,
        frac_alive_tokens=frac_alive_tokens,
    )


def _run(
    trainer: Trainer,
    stream: Iterator[Tensor],
    report: Report,
    clock: "_Clock",
    should_stop: Callable[[], bool],
) -> tuple[Outcome, str]:
    """Returns how the loop ended and a sentence on it.

    Checkpoints lie between a training step and what follows it (resampling, row), so that what follows is repeated
    after a resume, never half done.
    """
    num_steps = trainer.plan.num_steps
    while True:
        event: Numbers | None = {}
        if trainer.resampling_due():
            event = trainer.resample(stream, should_stop=should_stop)
            if event is None:
                clock.save()
                return "interrupted", f"interrupted in the resampling at step {trainer.step} of {num_steps}"
        if trainer.row_due():
            row = trainer.row() | event
            answer = report(row)
            if not math.isfinite(row["loss"]):
                return "diverged", f"the loss became {row['loss']} at or shortly before step {trainer.step}; lower training.lr"
            if answer == "stop" and trainer.step < num_steps:
                return "stopped", f"stopped early at step {trainer.step} of {num_steps}"
        if trainer.step == num_steps:
            return "finished", f"finished after {num_steps} steps"
        trainer.train_step(trainer.next_batch(stream))
        trainer.batches_read += 1
        if trainer.step < num_steps and should_stop():
            clock.save()
            return "interrupted", f"interrupted at step {trainer.step} of {num_steps}"
        clock.save_if_due()


class _Clock:
    """Keeps the seconds of training and says when a checkpoint is due."""

    def __init__(self, trainer: Trainer, folder: Path | None, *, every_s: float) -> None:
        self._trainer = trainer
        self._folder = folder
        self._every_s = every_s
        self._since = time.monotonic()
        self._due = self._since + every_s

    def stop(self) -> None:
        """Adds the seconds since the last call to the trainer's."""
        now = time.monotonic()
        self._trainer.wall_s += now - self._since
        self._since = now

    def save(self) -> None:
        """Writes a checkpoint if there is a folder for it."""
        if self._folder is None:
            return
        self.stop()
        save_checkpoint(self._folder, self._trainer.state_dict())
        now = time.monotonic()
        self._due = now + max(self._every_s, (now - self._since) / CHECKPOINT_SHARE)

    def save_if_due(self) -> None:
        """Writes a checkpoint if enough time has passed."""
        if self._folder is not None and time.monotonic() >= self._due:
            self.save()
