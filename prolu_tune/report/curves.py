"""Architectures compared at equal x: a curve through each one's runs, and what other seeds would have made of it.

A setting's seeds are averaged (geometric mean where values are positive) before a curve is drawn, so that many seeds do
not look better than few. Resampling draws, with replacement, as many runs of every setting as it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prolu_tune.pareto import pareto_frontier
from prolu_tune.report.axes import AXES, in_order

GRID_POINTS = 64
REPLICATES = 1000
INTERVAL = (5.0, 95.0)
"""Percentiles that intervals and bands show."""
ONE_SEED_TOLERANCE = 0.03
"""With one seed nothing is known about noise; relative differences below this are not counted."""

WIDEST_GAP = 6.0
"""Neighbouring runs further apart than this factor in x are not joined: nothing is known between them."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Plane:
    """Every architecture's y over one grid of x; NaN outside the x that an architecture's own runs span."""

    x: str
    y: str
    grid: np.ndarray
    """Ascending, evenly spaced in log x."""
    estimate: dict[str, np.ndarray]
    replicates: dict[str, np.ndarray] | None
    """(replicate, grid) each; None where there is one seed per setting."""

    @property
    def architectures(self) -> list[str]:
        """Those with a curve of their own."""
        return list(self.estimate)

    def interval(self, architecture: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the lower and upper end over the grid; None without seeds."""
        if self.replicates is None:
            return None
        with np.errstate(all="ignore"):
            return _percentiles(self.replicates[architecture], INTERVAL)

    def advantage(self, architecture: str, others: Sequence[str]) -> np.ndarray:
        """Returns over the grid +1 where the architecture is beyond noise better than the best other, -1 worse, 0 neither.

        NaN where it or all others have no curve. Smaller y is better, unless the axis says otherwise.
        """
        sign = -1.0 if AXES[self.y].larger_is_better else 1.0
        gain = self._gain(self.estimate, architecture, others, sign)
        if self.replicates is None:
            low = high = gain
            limit = ONE_SEED_TOLERANCE
        else:
            low, high = _percentiles(self._gain(self.replicates, architecture, others, sign), (2.5, 97.5))
            limit = 0.0
        verdict = np.where(low > limit, 1.0, np.where(high < -limit, -1.0, 0.0))
        return np.where(np.isnan(gain), np.nan, verdict)

    def ratio(self, architecture: str, other: str) -> tuple[float, float, float] | None:
        """Returns how many times the other's y this one's is at equal x, averaged over the x both have, with an interval.

        With one seed the interval is the value. None where they share less than a tenth of the grid.
        """
        shared = np.isfinite(self.estimate[architecture]) & np.isfinite(self.estimate[other])
        if shared.sum() < len(self.grid) / 10:
            return None
        value = float(np.exp(np.mean(np.log(self.estimate[architecture][shared] / self.estimate[other][shared]))))
        if self.replicates is None:
            return value, value, value
        with np.errstate(all="ignore"):
            logs = np.log(self.replicates[architecture][:, shared] / self.replicates[other][:, shared])
            means = np.exp(_mean(logs))
        low, high = np.nanpercentile(means, (2.5, 97.5))
        return value, float(low), float(high)

    def chances(self) -> dict[str, np.ndarray] | None:
        """Returns over the grid the share of replicates in which each architecture is best, where two or more have a curve."""
        if self.replicates is None:
            return None
        stack = np.stack([self.replicates[name] for name in self.architectures])
        stack = -stack if AXES[self.y].larger_is_better else stack
        rivals = np.isfinite(np.stack([self.estimate[name] for name in self.architectures])).sum(axis=0) > 1
        best = np.argmin(np.where(np.isnan(stack), np.inf, stack), axis=0)
        known = np.isfinite(stack).any(axis=0)
        return {
            name: np.where(rivals, ((best == index) & known).sum(axis=0) / np.maximum(1, known.sum(axis=0)), np.nan)
            for index, name in enumerate(self.architectures)
        }

    @staticmethod
    def _gain(curves: dict[str, np.ndarray], architecture: str, others: Sequence[str], sign: float) -> np.ndarray:
        own = curves[architecture]
        stack = np.stack([sign * curves[name] for name in others]) if others else np.full((1, *own.shape), np.nan)
        best = np.where(np.isnan(stack).all(axis=0), np.nan, np.where(np.isnan(stack), np.inf, stack).min(axis=0))
        size = np.maximum(np.abs(best), np.abs(own))
        with np.errstate(all="ignore"):
            return np.where(size > 0, (best - sign * own) / size, 0.0 * size)


class Planes:
    """The planes of one set of finished runs, each made once."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self._made: dict[tuple[str, str, bool], Plane | None] = {}

    def get(self, x: str, y: str, *, frontier: bool = True) -> Plane | None:
        """Returns the plane, see `make_plane`."""
        key = (x, y, frontier)
        if key not in self._made:
            self._made[key] = make_plane(self.rows, x, y, frontier=frontier)
        return self._made[key]


def make_plane(rows: Sequence[Row], x: str, y: str, *, frontier: bool = True, seed: int = 0) -> Plane | None:
    """Returns the curves of finished runs in a plane; None where fewer than two runs have both values.

    Args:
        rows: Finished runs with `architecture`, `group`, x and y.
        x: Axis of equal values; positive.
        y: Axis compared.
        frontier: Leave out a setting's mean that another of the same architecture dominates (both small is good).
        seed: Of the resampling.
    """
    usable = [row for row in rows if row.get(x) is not None and row.get(y) is not None and row[x] > 0]
    values = np.array([row[x] for row in usable])
    if len(usable) < 2 or values.min() == values.max():
        return None
    grid = np.geomspace(values.min(), values.max(), GRID_POINTS)
    generator = np.random.default_rng(seed)
    settings = {name: _settings(usable, name, x, y) for name in in_order(row["architecture"] for row in usable)}
    sign = -1.0 if AXES[y].larger_is_better else 1.0
    estimate = {name: _curve([_center(s) for s in own], grid, frontier, sign) for name, own in settings.items()}
    seeded = np.median([len(s) for own in settings.values() for s in own]) >= 2
    replicates = None
    if seeded:
        replicates = {
            name: np.stack([_curve(_drawn(own, generator), grid, frontier, sign) for _ in range(REPLICATES)])
            for name, own in settings.items()
        }
    return Plane(x, y, grid, estimate, replicates)


def _settings(rows: Sequence[Row], architecture: str, x: str, y: str) -> list[np.ndarray]:
    """Returns (seed, 2) points of each setting of an architecture."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["architecture"] == architecture:
            groups.setdefault(row["group"], []).append((row[x], row[y]))
    return [np.array(points) for points in groups.values()]


def _center(points: np.ndarray) -> tuple[float, float]:
    x = float(np.exp(np.log(points[:, 0]).mean()))
    positive = (points[:, 1] > 0).all()
    return x, float(np.exp(np.log(points[:, 1]).mean()) if positive else points[:, 1].mean())


def _drawn(settings: Sequence[np.ndarray], generator: np.random.Generator) -> list[tuple[float, float]]:
    return [_center(points[generator.integers(len(points), size=len(points))]) for points in settings]


def _curve(points: Sequence[tuple[float, float]], grid: np.ndarray, frontier: bool, sign: float) -> np.ndarray:
    """Returns y over the grid, straight in log x (and log y where all are positive) between neighbours."""
    chosen = [points[i] for i in pareto_frontier([(x, sign * y) for x, y in points])] if frontier else sorted(points)
    xs, ys = np.log([x for x, _ in chosen]), np.array([y for _, y in chosen])
    at = np.log(grid)
    # A hair of slack, so that the two ends of the grid, which are runs themselves, are inside.
    outside = (at < xs[0] - 1e-9) | (at > xs[-1] + 1e-9)
    for left, right in zip(xs, xs[1:], strict=False):
        if right - left > np.log(WIDEST_GAP):
            outside |= (at > left + 1e-9) & (at < right - 1e-9)
    inside = np.exp(np.interp(at, xs, np.log(ys))) if (ys > 0).all() else np.interp(at, xs, ys)
    return np.where(outside, np.nan, inside)


def _percentiles(values: np.ndarray, ends: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns both percentiles over the first axis; NaN where fewer than half of the replicates have a value."""
    enough = np.isfinite(values).mean(axis=0) >= 0.5
    filled = np.where(enough, values, 0.0)
    low, high = np.nanpercentile(filled, ends, axis=0)
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.where(known, values, 0.0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)
