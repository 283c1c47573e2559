"""Which architecture to take at a given L0, and whether the runs can tell."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prolu_tune.report.axes import AXES
from prolu_tune.report.curves import ONE_SEED_TOLERANCE, Plane

L0_TICKS: tuple[float, ...] = (2, 3, 5, 7, 10, 15, 20, 25, 35, 50, 70, 100, 150, 200, 300, 500, 700, 1000)
SURE = 0.95
"""Share of replicates from which on an architecture is called best beyond noise."""
MOST_ROWS = 9


@dataclass(frozen=True)
class BestAt:
    """The best architecture at one x, and its rival."""

    at: float
    architecture: str
    value: float
    interval: tuple[float, float] | None
    rival: str
    rival_value: float
    chance: float | None
    """Share of replicates in which it is best; None with one seed."""

    @property
    def words(self) -> str:
        """What may be said about it: whether it is beyond noise, or that one seed cannot tell."""
        if self.chance is None:
            apart = abs(self.value - self.rival_value) / max(abs(self.value), abs(self.rival_value))
            return "one seed: too close to tell" if apart < ONE_SEED_TOLERANCE else "one seed: noise unknown"
        return "beyond noise" if self.chance >= SURE else "within noise"


def best_at(plane: Plane, ticks: Sequence[float] = L0_TICKS) -> list[BestAt]:
    """Returns the best architecture at those ticks at which two or more have a curve, by ascending x."""
    sign = -1 if AXES[plane.y].larger_is_better else 1
    chances = plane.chances()
    found: list[BestAt] = []
    for tick in ticks:
        if not plane.grid[0] <= tick <= plane.grid[-1]:
            continue
        index = int(np.argmin(np.abs(np.log(plane.grid) - np.log(tick))))
        values = {name: float(curve[index]) for name, curve in plane.estimate.items() if np.isfinite(curve[index])}
        if len(values) < 2:
            continue
        first, second = sorted(values, key=lambda name: sign * values[name])[:2]
        ends = plane.interval(first)
        found.append(
            BestAt(
                at=tick,
                architecture=first,
                value=values[first],
                interval=None if ends is None or np.isnan(ends[0][index]) else (float(ends[0][index]), float(ends[1][index])),
                rival=second,
                rival_value=values[second],
                chance=None if chances is None else float(chances[first][index]),
            )
        )
    step = max(1, -(-len(found) // MOST_ROWS))
    return found[::step]
