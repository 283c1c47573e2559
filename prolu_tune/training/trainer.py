"""Trains one autoencoder on a stream of activations; stops, resumes and ends in the same bits.

`train` is the whole trial's training; `Trainer` is its state and one step. Between two rows of metrics nothing here
waits for the device.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prolu_tune import metrics
from prolu_tune.config.resolve import TrialPlan
from prolu_tune.config.trial import TrialConfig
from prolu_tune.errors import InputError
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.sae.tensor_file import TensorSpec, spec_of
from prolu_tune.training.checkpoint import Checkpoint, load_newest, save_checkpoint
from prolu_tune.training.numerics import numerics_signature, seeded_generator, set_numerics
from prolu_tune.training.optimizer import adam_tensors, make_adam, project_decoder_gradient, renormalize_decoder, set_adam_step
from prolu_tune.training.resampling import Resampler, dead_latents, resampling_notes, window_resolves
from prolu_tune.training.schedule import lr_factor, window_start
from prolu_tune.training.step import dense_gradients

Outcome = Literal["finished", "diverged", "interrupted", "stopped"]
CHECKPOINT_SHARE = 0.02
"""Checkpoints are spaced so that writing them takes less than this share of the time."""
_SUMMED = ("loss", "squared_error", "l1", "sqrt_l1")


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
    frac_alive: float
    """Share of latents that are not dead over the last firing window; NaN before any step."""
    frac_alive_tokens: int
    """Tokens of that window."""


class Trainer:
    """The state of a training and what changes it: a step, a resampling, a row of metrics."""

    def __init__(self, config: TrialConfig, plan: TrialPlan, *, device: str = "cpu") -> None:
        """Starts at step 0 with the seed's initialisation.

        Raises:
            InputError: if the device cannot do what the configuration asks for.
        """
        self.config = config
        self.plan = plan
        self.device = torch.device(device)
        set_numerics(config.training, self.device)
        operands = torch.bfloat16 if config.training.precision == "bfloat16" else torch.float32
        generator = seeded_generator("initialisation", config.seed)
        self.sae = SparseAutoencoder(config.sae, plan.d_in, plan.d_sae, generator=generator, operands=operands).to(self.device)
        self.adam = make_adam(self.sae, config.training, adam_eps=plan.adam_eps)
        self.step = 0
        self.batches_read = 0
        self.rows = 0
        self.wall_s = 0.0
        self.notes: list[str] = []
        # Firings since the window began, and since the last row.
        self._window_counts = torch.zeros(plan.d_sae, dtype=torch.int64, device=self.device)
        self._window_start = 0
        self._row_counts = torch.zeros_like(self._window_counts)
        self._row_sums = torch.zeros(len(_SUMMED), dtype=torch.float64, device=self.device)
        self._row_start = 0

    @property
    def tokens(self) -> int:
        """Activations read from the stream so far."""
        return self.batches_read * self.config.training.batch_size

    @property
    def lr(self) -> float:
        """Learning rate of the step just taken, or of the first."""
        factor = lr_factor(max(self.step - 1, 0), plan=self.plan, cooldown_factor=self.config.training.cooldown_factor)
        return self.config.training.lr * factor

    def train_step(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Trains on one batch of raw activations; does not wait for the device."""
        if self.step == window_start(self.step, plan=self.plan):
            self._start_window()
        normed = self.sae.normalize(x).x
        stats = dense_gradients(self.sae, normed, l1_coefficient=self.config.training.l1_coefficient)
        W_dec = self.sae.W_dec
        assert W_dec.grad is not None
        project_decoder_gradient(W_dec.grad, W_dec)
        self.step += 1
        self.adam.param_groups[0]["lr"] = self.lr
        self.adam.step()
        renormalize_decoder(W_dec)
        self._row_sums += torch.stack([getattr(stats, name) for name in _SUMMED])
        self._row_counts += stats.fired
        self._window_counts += stats.fired

    def next_batch(self, batches: Iterator[Tensor]) -> Float[Tensor, "batch d_in"]:
        """Returns the next batch of the stream, float32 on this trainer's device.

        Raises:
            RuntimeError: if the stream has ended or its shape is another.
        """
        batch = next(batches, None)
        expected = (self.config.training.batch_size, self.plan.d_in)
        if batch is None or batch.shape != expected:
            found = "has ended" if batch is None else f"gave a batch of shape {tuple(batch.shape)}"
            raise RuntimeError(
                f"the activation stream {found} at step {self.step}; {expected} was due, {self.plan.num_batches} times in all"
            )
        return batch.to(self.device, torch.float32, non_blocking=True)

    def resampling_due(self) -> bool:
        """Returns whether dead latents are to be replaced before the next training step."""
        return self.step in self.plan.resampling_steps

    def resample(self, batches: Iterator[Tensor], *, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Replaces dead latents, consuming `resampling_batches` batches, and returns the event for the row.

        None if should_stop became true in between: then nothing has changed but the iterator.

        Raises:
            RuntimeError: if the stream has ended.
        """
        config, window_tokens = self.config.resampling, self._window_tokens()
        dead = dead_latents(self._window_counts, tokens=window_tokens, dead_frequency=config.dead_frequency)
        generator = seeded_generator("resampling", self.config.seed, self.step)
        resampler = Resampler(self.sae, dead, config, generator=generator)
        for _ in range(self.plan.resampling_batches):
            if should_stop():
                return None
            resampler.read(self.next_batch(batches))
        event = resampler.replace(self.adam)
        self.batches_read += self.plan.resampling_batches
        unresolved = not window_resolves(tokens=window_tokens, dead_frequency=config.dead_frequency)
        event |= {"window_tokens": window_tokens, "window_unresolved": int(unresolved)}
        self.notes += resampling_notes(self.step, event, dead_frequency=config.dead_frequency, earlier=self.notes)
        self._start_window()
        return event

    def row_due(self) -> bool:
        """Returns whether a row of metrics belongs after the step just taken."""
        return self.step > self._row_start and (
            self.step % self.plan.log_every == 0 or self.step == self.plan.num_steps or self.resampling_due()
        )

    def row(self) -> dict[str, float]:
        """Returns the metrics averaged over the steps since the last row, and starts the next; waits for the device."""
        steps = self.step - self._row_start
        tokens = steps * self.config.training.batch_size
        sums = dict(zip(_SUMMED, (self._row_sums / steps).tolist(), strict=True))
        row = {
            "step": self.step,
            "tokens": self.tokens,
            "loss": sums["loss"],
            "mse": sums["squared_error"] / self.plan.d_in,
            "l0": self._row_counts.sum().item() / tokens,
            "l1": sums["l1"],
            "sqrt_l1": sums["sqrt_l1"],
            "frac_alive": self._alive_share(self._row_counts, tokens),
            "lr": self.lr,
        }
        self._row_sums.zero_()
        self._row_counts.zero_()
        self._row_start = self.step
        self.rows += 1
        return row

    def frac_alive(self) -> tuple[float, int]:
        """Returns the share of latents that are not dead in the firing window so far, and the window's tokens."""
        tokens = self._window_tokens()
        return (self._alive_share(self._window_counts, tokens) if tokens else math.nan), tokens

    def state_dict(self) -> Checkpoint:
        """Returns the complete state; its tensors are the live ones, to be written before the next step."""
        state = {
            "step": self.step,
            "batches_read": self.batches_read,
            "rows": self.rows,
            "wall_s": self.wall_s,
            "notes": self.notes,
            "window_start": self._window_start,
            "row_start": self._row_start,
            "trial": trial_digest(self.config, self.plan),
            "numerics": numerics_signature(self.config.training, self.device),
        }
        return Checkpoint(self.step, self._tensors(), state)

    def load_state_dict(self, checkpoint: Checkpoint) -> None:
        """Takes over a state that a trainer of the same trial has saved.

        Raises:
            InputError: if it belongs to another trial.
        """
        state = checkpoint.state
        if state["trial"] != trial_digest(self.config, self.plan):
            raise InputError(
                f"the checkpoint of step {checkpoint.step} belongs to another configuration; "
                "go back to that one, or start afresh in another folder"
            )
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(checkpoint.tensors[name])
        set_adam_step(self.adam, state["step"])
        self.step, self.batches_read, self.rows = state["step"], state["batches_read"], state["rows"]
        self.wall_s, self.notes = state["wall_s"], list(state["notes"])
        self._window_start, self._row_start = state["window_start"], state["row_start"]
        before, now = state["numerics"], numerics_signature(self.config.training, self.device)
        if before != now:
            changed = ", ".join(f"{key} {before.get(key)} -> {now.get(key)}" for key in now if before.get(key) != now[key])
            self.notes.append(f"resumed at step {self.step} under other numerics ({changed}): the last bits may differ")

    def tensor_specs(self) -> dict[str, TensorSpec]:
        """Returns what the tensors of a checkpoint of this trial must be."""
        return {name: spec_of(tensor) for name, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **{name: parameter.detach() for name, parameter in self.sae.named_parameters()},
            **adam_tensors(self.adam, self.sae),
            "window_counts": self._window_counts,
            "row_counts": self._row_counts,
            "row_sums": self._row_sums,
        }

    def _start_window(self) -> None:
        self._window_counts.zero_()
        self._window_start = self.step

    def _window_tokens(self) -> int:
        return (self.step - self._window_start) * self.config.training.batch_size

    def _alive_share(self, counts: Tensor, tokens: int) -> float:
        least = self.config.resampling.dead_frequency
        return metrics.alive(counts, tokens=tokens, least_frequency=least).double().mean().item()


def trial_digest(config: TrialConfig, plan: TrialPlan) -> str:
    """Returns a SHA-256 of everything the weights depend on; when checkpoints are written and how much is cached do not."""
    content = config.model_dump(mode="json", exclude={"evaluation": True, "training": {"checkpoint_every_s"}})
    for name in ("cache_gb", "eval_range"):
        del content["activations"][name]
    return hashlib.sha256(json.dumps([content, asdict(plan)], sort_keys=True).encode()).hexdigest()


def train(
    config: TrialConfig,
    *,
    plan: TrialPlan,
    batches: Callable[[int], Iterator[Tensor]],
    report: Callable[[dict[str, float]], str | None],
    checkpoint_dir: Path | None,
    device: str,
    should_stop: Callable[[], bool],
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

    Raises:
        InputError: if the device cannot do what the configuration asks for, or the checkpoint is another trial's.
        SurroundingsError: if a checkpoint cannot be written or read.
        RuntimeError: if the stream ends too early.
    """
    trainer = Trainer(config, plan, device=device)
    if checkpoint_dir is not None:
        checkpoint, warnings = load_newest(checkpoint_dir, trainer.tensor_specs())
        if checkpoint is not None:
            trainer.load_state_dict(checkpoint)
        trainer.notes += warnings
    clock = _Clock(trainer, checkpoint_dir, every_s=config.training.checkpoint_every_s)
    outcome, message = _run(trainer, batches(trainer.tokens), report, clock, should_stop)
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
        frac_alive=frac_alive,
        frac_alive_tokens=frac_alive_tokens,
    )


def _run(
    trainer: Trainer,
    stream: Iterator[Tensor],
    report: Callable[[dict[str, float]], str | None],
    clock: "_Clock",
    should_stop: Callable[[], bool],
) -> tuple[Outcome, str]:
    """Returns how the loop ended and a sentence on it.

    Checkpoints lie between a training step and what follows it (resampling, row), so that what follows is repeated
    after a resume, never half done.
    """
    num_steps = trainer.plan.num_steps
    while True:
        event: dict[str, float] | None = {}
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
