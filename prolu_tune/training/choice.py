"""Which gradient step to take next, dense or sparse: decided from how many latents were active lately, and the shape.

A fresh autoencoder is half dense, and there the sparse step would be several times slower; a trained one is sparse.
The two agree to rounding, not to the bit, so the decision is part of a training's state and depends on nothing else:
neither on time nor on load.
"""

from dataclasses import dataclass
from typing import Literal, cast, get_args

Path = Literal["dense", "sparse"]

HYSTERESIS = 0.9
"""The sparse step is taken up below this share of the density at which it is dropped."""


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Where a device's dense and sparse step take equally long; errs on the dense side.

    What the dense step spends on each entry of (batch, d_sae) grows with d_in, and so does what the sparse step spends
    on each active entry. But some of the latter is one thread's work and some of it is fixed. All are measured in the
    time that one thread needs for one active entry and one of its d_in columns.
    """

    density: float
    """Share of active entries at which both take equally long, on wide activations and large batches."""
    dense_columns: int = 0
    """What the dense step spends on an entry besides its d_in columns, in columns."""
    sparse_columns: int = 0
    """What the sparse step spends on an active entry besides its d_in columns, divided among the threads."""
    serial_columns: int = 0
    """What it spends on an active entry in one thread."""
    fixed_columns: int
    """What the sparse step costs whatever the batch, in one thread."""
    every: int
    """Steps between two decisions; more than 1 where reading a count means waiting for the device."""

    def dense_from(self, *, batch_size: int, d_in: int, d_sae: int, num_threads: int) -> float:
        """Returns the share of active entries from which on the dense step is the faster one; 0: at any."""
        saved = self.density * (d_in + self.dense_columns) - num_threads * self.fixed_columns / (batch_size * d_sae)
        return max(0.0, saved / (d_in + self.sparse_columns + num_threads * self.serial_columns))


# `python -m prolu_tune.bench crossover`, one and two threads of an AMD EPYC (Zen 4), 22 November 2026. They cross at 0.1
# for d_in 32 and at 0.09 to 0.24 for d_in 128 to 1,024 with one thread, at 0.08 and 0.12 to 0.22 with two; below some
# 500,000 entries (256 x 2,048) a fixed half millisecond counts. The density keeps a margin below all of them: at none of 73
# shapes, gates and threads did the choice lose, and an active entry takes some 100 bytes (counted, not measured).
CPU = Crossover(density=0.075, dense_columns=75, sparse_columns=50, serial_columns=55, fixed_columns=2_000_000, every=1)
# Not measured: from the roofline in `triton_step`.
CUDA = Crossover(density=0.015, fixed_columns=2**18 * 768, every=64)


class StepChoice:
    """Starts dense; `path` is the step to take next, `observe` is told what it showed."""

    def __init__(self, crossover: Crossover | None, *, batch_size: int, d_in: int, d_sae: int, num_threads: int) -> None:
        """Takes None where there is no sparse step: the path is then always dense."""
        self.path: Path = "dense"
        self._every = None if crossover is None else crossover.every
        self._entries = batch_size * d_sae
        self._dense_from = 0.0
        if crossover is not None:
            self._dense_from = crossover.dense_from(batch_size=batch_size, d_in=d_in, d_sae=d_sae, num_threads=num_threads)

    def due(self, step: int) -> bool:
        """Returns whether the count of this step's active entries is asked for."""
        return self._every is not None and step % self._every == 0

    def observe(self, num_active: int) -> None:
        """Decides the path of the steps to come from the number of active entries of a batch.

        Args:
            num_active: entries of (batch_size, d_sae) that were active.
        """
        limit = self._dense_from if self.path == "sparse" else HYSTERESIS * self._dense_from
        self.path = "sparse" if num_active < limit * self._entries else "dense"

    def state_dict(self) -> dict[str, str]:
        """Returns all that a checkpoint needs, as JSON values."""
        return {"path": self.path}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Takes over a state that `state_dict` gave.

        Raises:
            ValueError: if it names no path.
        """
        if state.get("path") not in get_args(Path):
            raise ValueError(f"the state names the path {state.get('path')!r}, which must be one of {get_args(Path)}")
        self.path = cast(Path, state["path"])
