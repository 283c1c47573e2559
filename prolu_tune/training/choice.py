"""Which gradient step to take next, dense or sparse: decided from how many latents were active lately, and the shape.

A fresh autoencoder is half dense, and there the sparse step would be many times slower; a trained one is sparse. The
two agree to rounding, not to the bit, so the decision is part of a training's state and depends on nothing else.
"""

from dataclasses import dataclass
from typing import Literal

Path = Literal["dense", "sparse"]


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Where one device's two steps take equally long, measured with `python -m prolu_tune.bench step`."""

    density: float
    """Share of active entries at which they do, at large shapes."""
    entry_floats: int
    """Floats that an active entry costs besides those it gathers: narrow hooks profit less."""
    least_entries: int
    """Entries of (batch, d_sae), times d_in, below which the sparse step's fixed cost is never won back."""
    every: int
    """Steps between two decisions. More than 1 where reading a count means waiting for the device."""


CPU = Crossover(density=0.1, entry_floats=128, least_entries=2**27, every=1)
CUDA = Crossover(density=0.02, entry_floats=128, least_entries=2**31, every=64)

HYSTERESIS = 0.75
"""The sparse step is entered below this share of the density at which it is left."""


class StepChoice:
    """Starts dense; `path` is the step to take next, `observe` tells what it showed."""

    def __init__(self, *, d_in: int, d_sae: int, batch_size: int, crossover: Crossover | None) -> None:
        """Takes crossover None where there is no sparse step: then the path is always dense."""
        self.path: Path = "dense"
        self._entries = batch_size * d_sae
        self._steps = 0
        self._crossover = crossover
        self._leave = 0.0 if crossover is None else leave_density(crossover, d_in=d_in, entries=self._entries)

    @property
    def due(self) -> bool:
        """Whether the step just taken is one whose firings decide; others need not be counted on the host."""
        return self._crossover is not None and self._steps % self._crossover.every == 0

    def step_taken(self) -> bool:
        """Counts a step and returns whether `observe` is due with what it showed."""
        self._steps += 1
        return self.due

    def observe(self, num_active: int) -> None:
        """Decides the path of the next steps from the number of active entries in the batch."""
        limit = self._leave if self.path == "sparse" else HYSTERESIS * self._leave
        self.path = "sparse" if num_active < limit * self._entries else "dense"
