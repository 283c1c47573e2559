"""Which gradient step to take next, dense or sparse: decided from how many latents were active lately, and the shape.

A fresh autoencoder is half dense, and there the sparse step would be several times slower; a trained one is sparse.
The two agree to rounding, not to the bit, so the decision is part of a training's state and depends on nothing else:
neither on time nor on load.
"""

from dataclasses import dataclass
from typing import Literal, cast, get_args

Path = Literal["dense", "sparse"]

HYSTERESIS = 0.75
"""The sparse step is taken up below this share of the density at which it is dropped."""


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Where a device's dense and sparse step take equally long; errs on the dense side."""

    density: float
    """Share of active entries at which they do, at large shapes."""
    fixed_entries: int
    """The sparse step's fixed cost, in active entries that could be worked off meanwhile."""
    every: int
    """Steps between two decisions; more than 1 where reading a count means waiting for the device."""

    def dense_from(self, *, batch_size: int, d_sae: int) -> float:
        """Returns the share of active entries from which on the dense step is the faster one; 0: at any."""
        return max(0.0, self.density - self.fixed_entries / (batch_size * d_sae))


# One thread of an AMD EPYC (Zen 4), every nonlinearity, 22 November 2026: they cross at 0.15 to 0.25 for d_in 64 to
# 1,024, and at 0.01 for 512 latents and 256 tokens, where a fixed 1.7 ms weigh most.
CPU = Crossover(density=0.1, fixed_entries=2**15, every=1)
# Not measured: from the roofline in `triton_step`.
CUDA = Crossover(density=0.015, fixed_entries=2**18, every=64)


class StepChoice:
    """Starts dense; `path` is the step to take next, `observe` is told what it showed."""

    def __init__(self, crossover: Crossover | None, *, batch_size: int, d_sae: int) -> None:
        """Takes None where there is no sparse step: the path is then always dense."""
        self.path: Path = "dense"
        self._every = None if crossover is None else crossover.every
        self._entries = batch_size * d_sae
        self._dense_from = 0.0 if crossover is None else crossover.dense_from(batch_size=batch_size, d_sae=d_sae)

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
