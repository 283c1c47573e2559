"""Whether the choice between dense and sparse step ever loses: both timed over a grid of shapes and densities.

For each shape and number of threads: where the two take equally long, where the choice changes over, and the most that
it loses to the dense step at a density at which it takes the sparse one. Set OMP_WAIT_POLICY=passive with `--clock cpu`.
"""

import argparse
import statistics
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch

from prolu_tune.bench.options import Options, make_parser, show
from prolu_tune.bench.step import StepOptions, make_autoencoder, set_l0, timed
from prolu_tune.config.names import NONLINEARITIES
from prolu_tune.errors import InputError
from prolu_tune.training.choice import CPU
from prolu_tune.training.numerics import keep_freed_memory
from prolu_tune.training.sparse import SparseStep
from prolu_tune.training.step import dense_gradients

SHAPES = "64x512x8192 256x32x512 256x128x2048 1024x32x2048 1024x512x512 1024x128x8192 2048x256x4096 4096x32x8192 1024x1024x8192"
DENSITIES = (0.0005, 0.01, 0.03, 0.06, 0.1, 0.15, 0.25)


class CrossoverOptions(Options):
    """The shared flags and this measurement's own."""

    shapes: str
    nonlinearity: str


class Crossing(NamedTuple):
    """What was found at one shape."""

    measured: float
    """Density at which both take equally long."""
    chosen: float
    """Density from which on the dense step is chosen."""
    worst: float
    """Largest ratio of sparse over dense at a density below `chosen`; interpolated there."""


def main() -> None:
    """Prints a line per shape and number of threads, or with `--json` one line of JSON.

    Raises:
        InputError: if a shape cannot be read.
    """
    made: argparse.ArgumentParser = make_parser("crossover", __doc__, threads=1, steps=3)
    made.add_argument("--shapes", default=SHAPES, help="batch x d_in x d_sae each, such as 256x32x512")
    made.add_argument("--nonlinearity", choices=NONLINEARITIES, default="relu")
    options = made.parse_args(namespace=CrossoverOptions())
    show(measure(options), as_json=options.json)


def measure(options: CrossoverOptions) -> dict[str, float | int | str]:
    """Returns a sentence per shape, and the worst ratio of all.

    Raises:
        InputError: if a shape cannot be read.
    """
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    found = {text: _crossing(_shape(text), options) for text in options.shapes.split()}
    return {
        **{
            text: f"equal at {c.measured:.3f}, dense from {c.chosen:.3f}, sparse/dense {c.worst:.2f}"
            for text, c in found.items()
        },
        "worst_sparse_over_dense": max(crossing.worst for crossing in found.values()),
        "threads": options.threads,
        "nonlinearity": options.nonlinearity,
        "clock": options.clock,
        "torch": torch.__version__,
    }


def _shape(text: str) -> tuple[int, int, int]:
    try:
        batch, d_in, d_sae = map(int, text.split("x"))
    except ValueError:
        raise InputError(f"--shapes holds {text!r}, which must read batch x d_in x d_sae, such as 256x32x512") from None
    return batch, d_in, d_sae


def _crossing(shape: tuple[int, int, int], options: CrossoverOptions) -> Crossing:
    batch, d_in, d_sae = shape
    device = torch.device("cpu")
    sae = make_autoencoder(StepOptions(d_in=d_in, d_sae=d_sae, nonlinearity=options.nonlinearity, penalty="l1"), device)
    x = sae.normalize(torch.randn(batch, d_in)).x
    sparse = SparseStep()

    def median(run: Callable[[], object]) -> float:
        run()
        return statistics.median(timed(run, options.clock, device) for _ in range(options.steps))

    points = []
    for density in DENSITIES:
        set_l0(sae, x, max(density * d_sae, 0.3))
        active = int(sparse(sae, x, l1_coefficient=1e-3).fired.sum())
        dense_s = median(lambda: dense_gradients(sae, x, l1_coefficient=1e-3))
        points.append((active / (batch * d_sae), median(lambda: sparse(sae, x, l1_coefficient=1e-3)) / dense_s))
    chosen = CPU.dense_from(batch_size=batch, d_in=d_in, d_sae=d_sae, num_threads=options.threads)
    below = [ratio for density, ratio in points if density < chosen]
    worst = max([*below, _at(points, chosen)]) if chosen > points[0][0] else 0.0
    return Crossing(measured=_first_above(points, 1.0), chosen=chosen, worst=worst)


def _at(points: list[tuple[float, float]], density: float) -> float:
    """Returns the ratio at a density, between the two measured ones around it."""
    for (low, left), (high, right) in pairwise(points):
        if low <= density <= high:
            return left + (right - left) * (density - low) / (high - low)
    return points[-1][1]


def _first_above(points: list[tuple[float, float]], ratio: float) -> float:
    """Returns the density at which the ratio is reached; the last one measured if it never is."""
    if points[0][1] >= ratio:
        return 0.0
    for (low, left), (high, right) in pairwise(points):
        if left < ratio <= right:
            return low + (high - low) * (ratio - left) / (right - left)
    return points[-1][0]


if __name__ == "__main__":
    main()
