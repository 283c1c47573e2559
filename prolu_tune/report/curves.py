"""Architectures compared at equal x: a curve through each one's runs, and what other seeds would have made of it.

A setting's seeds are averaged (geometric mean where values are positive) before a curve is drawn, so that many seeds do
not look better than few. Resampling draws, with replacement, as many runs of every setting as it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prolu_tune.report.axes import AXES, in_order

GRID_POINTS = 64
REPLICATES = 1000
INTERVAL = (5.0, 95.0)
"""Percentiles that intervals and bands show."""
ONE_SEED_TOLERANCE = 0.05
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
        frontier: Leave out a setting's mean that another of the same architecture dominates.
        seed: Of the resampling.
    """
    usable = [row for row in rows if row.get(x) is not None and row.get(y) is not None and row[x] > 0]
    values = np.array([row[x] for row in usable])
    if len(usable) < 2 or values.min() == values.max():
        return None
    grid = np.geomspace(values.min(), values.max(), GRID_POINTS)
    generator = np.random.default_rng(seed)
    logarithmic = min(row[y] for row in usable) > 0
    sign = 0.0 if not frontier else -1.0 if AXES[y].larger_is_better else 1.0
    settings = {name: _settings(usable, name, x, y, logarithmic) for name in in_order(row["architecture"] for row in usable)}
    seeded = np.median([len(points) for own in settings.values() for points in own]) >= 2
    estimate, replicates = {}, {}
    for name, own in settings.items():
        means = np.stack([points.mean(axis=0) for points in own])[None]
        estimate[name] = _curves(means, grid, sign, logarithmic)[0]
        if seeded:
            drawn = [points[generator.integers(len(points), size=(REPLICATES, len(points)))].mean(axis=1) for points in own]
            replicates[name] = _curves(np.stack(drawn, axis=1), grid, sign, logarithmic)
    return Plane(x, y, grid, estimate, replicates if seeded else None)


def _settings(rows: Sequence[Row], architecture: str, x: str, y: str, logarithmic: bool) -> list[np.ndarray]:
    """Returns for each setting of an architecture its seeds' (log x, y), or (log x, log y)."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["architecture"] == architecture:
            groups.setdefault(row["group"], []).append((row[x], row[y]))
    points = [np.array(found) for found in groups.values()]
    return [np.column_stack([np.log(p[:, 0]), np.log(p[:, 1]) if logarithmic else p[:, 1]]) for p in points]


def _curves(means: np.ndarray, grid: np.ndarray, sign: float, logarithmic: bool) -> np.ndarray:
    """Returns (replicate, grid) values of y, straight between neighbours.

    Args:
        means: (replicate, setting, 2): log x, and y or its log.
        grid: Values of x.
        sign: 1 drops points that another one dominates where small y is good, -1 where large y is good, 0 drops none.
        logarithmic: Whether the log of y was taken.
    """
    order = np.argsort(means[:, :, 0], axis=1, kind="stable")
    xs, ys = (np.take_along_axis(means[:, :, axis], order, axis=1) for axis in (0, 1))
    lowest = np.minimum.accumulate(sign * ys, axis=1)
    kept = np.ones(xs.shape, dtype=bool)
    if sign:
        kept[:, 1:] = sign * ys[:, 1:] < lowest[:, :-1]
    at, curves = np.log(grid), np.empty((len(means), len(grid)))
    for index, (x, y, keep) in enumerate(zip(xs, ys, kept, strict=True)):
        x, y = x[keep], y[keep]
        # A hair of slack, so that the two ends of the grid, which are runs themselves, are inside.
        x[0], x[-1] = x[0] - 1e-9, x[-1] + 1e-9
        curves[index] = np.interp(at, x, y, left=np.nan, right=np.nan)
        for gap in np.flatnonzero(np.diff(x) > np.log(WIDEST_GAP)):
            curves[index, (at > x[gap] + 1e-8) & (at < x[gap + 1] - 1e-8)] = np.nan
    return np.exp(curves) if logarithmic else curves


def _percentiles(values: np.ndarray, ends: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns both percentiles over the first axis; NaN where fewer than half of the replicates have a value."""
    enough = np.isfinite(values).mean(axis=0) >= 0.5
    filled = np.where(enough, values, 0.0)
    low, high = np.nanpercentile(filled, ends, axis=0)
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    return np.where(known, values, 0.0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)
