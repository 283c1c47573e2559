"""The state of a training and what changes it: a step, a resampling, a row of metrics.

Between two rows nothing here waits for the device.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict

import torch
from jaxtyping import Float
from torch import Tensor

from prolu_tune import metrics
from prolu_tune.config.resolve import TrialPlan
from prolu_tune.config.trial import TrialConfig
from prolu_tune.errors import InputError, OtherNumericsError
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.sae.tensor_file import TensorSpec, spec_of
from prolu_tune.training.checkpoint import Checkpoint
from prolu_tune.training.choice import Path, StepChoice
from prolu_tune.training.numerics import numerics_changes, numerics_signature, seeded_generator, set_numerics
from prolu_tune.training.optimizer import Adam, update
from prolu_tune.training.paths import complaint_about, sparse_path
from prolu_tune.training.resampling import Resampler, dead_latents, resampling_notes, window_resolves
from prolu_tune.training.schedule import lr_factor, window_start
from prolu_tune.training.step import dense_gradients

_SUMMED = ("loss", "squared_error", "l1", "sqrt_l1")


class Trainer:
    """One trial in training: weights, Adam, counters; every change to them is a method."""

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
        self.adam = Adam(self.sae, config.training, eps=plan.adam_eps)
        self.notes: list[str] = []
        self._sparse = sparse_path(self.sae, self.device) if config.training.sparse_step else None
        if self._sparse and self._sparse.check_first:
            complaint = complaint_about(self._sparse, self.sae, config.training)
            if complaint:
                self.notes.append(f"trained densely, because the sparse step cannot be trusted on this device: {complaint}")
                self._sparse = None
        self._update = self._sparse.update if self._sparse else update
        crossover = self._sparse.crossover if self._sparse else None
        # On a GPU the threads of the host do no part of the step.
        threads = config.training.num_threads if self.device.type == "cpu" else 1
        batch_size = config.training.batch_size
        self._choice = StepChoice(crossover, batch_size=batch_size, d_in=plan.d_in, d_sae=plan.d_sae, num_threads=threads)
        self.step = 0
        self.batches_read = 0
        self.rows = 0
        self.wall_s = 0.0
        self.numerics_changes: list[str] = []
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
    def path(self) -> Path:
        """Which kind of step comes next."""
        return self._choice.path

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
        sparse = self._sparse if self.path == "sparse" else None
        gradients = sparse.gradients if sparse else dense_gradients
        stats = gradients(self.sae, normed, l1_coefficient=self.config.training.l1_coefficient)
        if self._choice.due(self.step):
            self._choice.observe(int(stats.fired.sum().item()))
            if self._sparse and self.path == "dense":
                self._sparse.gradients.release()
        self.step += 1
        self.adam.lr = self.lr
        self._update(self.sae, self.adam)
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
        # Widened where it has arrived: a copy to a GPU that also converts does so on the host, and twice as many bytes travel.
        return batch.to(self.device).to(torch.float32)

    def resampling_due(self) -> bool:
        """Returns whether dead latents are to be replaced before the next training step."""
        return self.step in self.plan.resampling_steps

    def resample(self, batches: Iterator[Tensor], *, should_stop: Callable[[], bool]) -> metrics.Numbers | None:
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

    def row(self) -> metrics.Numbers:
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
            "step_choice": self._choice.state_dict(),
            "trial": trial_digest(self.config, self.plan),
            "numerics": numerics_signature(self.config.training, self.device),
            "numerics_changes": self.numerics_changes,
        }
        return Checkpoint(self.step, self._tensors(), state)

    def load_state_dict(self, checkpoint: Checkpoint, *, accept_numerics: bool = False) -> None:
        """Takes over a state that a trainer of the same trial has saved.

        Args:
            accept_numerics: go on although the last bits will differ from an undisturbed run's, and note it.

        Raises:
            InputError: if it belongs to another trial.
            OtherNumericsError: if it was made where the same steps give other bits.
        """
        state = checkpoint.state
        if state["trial"] != trial_digest(self.config, self.plan):
            raise InputError(
                f"the checkpoint of step {checkpoint.step} belongs to another configuration; "
                "go back to that one, or start afresh in another folder"
            )
        changed = numerics_changes(state["numerics"], numerics_signature(self.config.training, self.device))
        if changed and not accept_numerics:
            raise OtherNumericsError(
                f"its checkpoint of step {checkpoint.step} was made with other numerics ({changed}), so the result would "
                "differ in the last bits from an undisturbed run's; go on where it began, or run with --accept-numerics"
            )
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(checkpoint.tensors[name])
        self.adam.set_steps_taken(state["step"])
        self.step, self.batches_read, self.rows = state["step"], state["batches_read"], state["rows"]
        self.wall_s, self.notes = state["wall_s"], list(state["notes"])
        self._window_start, self._row_start = state["window_start"], state["row_start"]
        self._choice.load_state_dict(state["step_choice"])
        self.numerics_changes = list(state.get("numerics_changes", []))
        if changed:
            self.numerics_changes.append(f"from step {self.step}: {changed}")

    def tensor_specs(self) -> dict[str, TensorSpec]:
        """Returns what the tensors of a checkpoint of this trial must be."""
        return {name: spec_of(tensor) for name, tensor in self._tensors().items()}

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **{name: parameter.detach() for name, parameter in self.sae.named_parameters()},
            **self.adam.tensors(),
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
