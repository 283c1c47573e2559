"""Frontiers and hypervolumes in a plane whose two values are both to be as small as possible. Needs numpy alone.

A point with a missing, NaN or infinite value is nowhere: it is on no frontier, dominates nothing and adds no area.
"""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np

Point = tuple[float | None, float | None]
"""(x, y), both to be minimised."""

REFERENCE_MARGIN = 0.1
"""How far the reference point lies beyond the worst values, as a share of their range."""


def pareto_frontier(points: Iterable[Point]) -> list[int]:
    """Returns the indices of the points that no other point dominates, by ascending x.

    A point dominates another if it is at most as large in both values and smaller in one. So of points that tie in
    one value only the better stays, and of equal points either all are on the frontier or none.
    """
    array = _array(points)
    usable = np.flatnonzero(np.isfinite(array).all(axis=1))
    # Sorted by x, then y, without repeats: a point is dominated if an earlier one is at most as high.
    distinct, place = np.unique(array[usable], axis=0, return_inverse=True)
    lowest_before = np.concatenate([[np.inf], np.minimum.accumulate(distinct[:, 1])])[:-1]
    kept = distinct[:, 1] < lowest_before
    place = place.reshape(-1)
    chosen = usable[kept[place]]
    return [int(index) for index in chosen[np.argsort(place[kept[place]], kind="stable")]]


def frontier_by_group(points: Sequence[Point], groups: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    """Returns each group's own frontier, as indices into `points`; groups in the order in which they first appear."""
    return {
        group: [members[i] for i in pareto_frontier(points[index] for index in members)]
        for group, members in _members(groups).items()
    }


def reference_point(points: Iterable[Point]) -> tuple[float, float] | None:
    """Returns the corner that areas are measured to: the worst value of each axis and a tenth of its range beyond.

    The tenth gives the extreme runs an area of their own. Frontiers are comparable only under one reference point:
    take it from all runs that are compared. None without a usable point.
    """
    array = _array(points)
    array = array[np.isfinite(array).all(axis=1)]
    if not len(array):
        return None
    worst, best = array.max(axis=0), array.min(axis=0)
    x, y = worst + REFERENCE_MARGIN * (worst - best)
    return float(x), float(y)


def hypervolume(points: Iterable[Point], reference: tuple[float, float]) -> float:
    """Returns the area that the points dominate, up to the reference point; larger is better.

    Points that are not better than the reference in both values add nothing. A single point, measured to the
    reference point of itself, has no area.
    """
    array = _array(points)
    with np.errstate(invalid="ignore"):
        inside = array[np.isfinite(array).all(axis=1) & (array < np.asarray(reference)).all(axis=1)]
    stairs = inside[pareto_frontier([(float(x), float(y)) for x, y in inside])]
    heights = -np.diff(stairs[:, 1], prepend=reference[1])
    return float(np.sum((reference[0] - stairs[:, 0]) * heights))


def _array(points: Iterable[Point]) -> np.ndarray:
    rows = [[np.nan if value is None else value for value in point] for point in points]
    return np.asarray(rows, dtype=float).reshape(-1, 2)


def _members(groups: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return members
