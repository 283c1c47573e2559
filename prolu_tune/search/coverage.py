"""How much of a target range of L0 the finished trials of one group cover."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class CoverageTarget:
    """A range of L0, cut into equal bins of log L0.

    Args:
        low: smallest L0 wanted, above 0.
        high: largest L0 wanted, above `low`.
        bins: how many bins, at least 1.

    Raises:
        ValueError: if the range is empty or not positive, or there is no bin.
    """

    low: float
    high: float
    bins: int

    def __post_init__(self) -> None:
        if not (0 < self.low < self.high < math.inf):
            raise ValueError(f"the L0 range needs 0 < low < high, got [{self.low}, {self.high}]; write it as [5, 200]")
        if self.bins < 1:
            raise ValueError(f"bins must be at least 1, got {self.bins}; 16 is usual")

    @cached_property
    def log_edges(self) -> np.ndarray:
        """The bins + 1 edges as log L0, ascending."""
        return np.linspace(math.log(self.low), math.log(self.high), self.bins + 1)

    @cached_property
    def log_centers(self) -> np.ndarray:
        """The middle of each bin as log L0, ascending."""
        return (self.log_edges[1:] + self.log_edges[:-1]) / 2

    @cached_property
    def log_low(self) -> float:
        return math.log(self.low)

    @cached_property
    def log_high(self) -> float:
        return math.log(self.high)

    @property
    def log_middle(self) -> float:
        return (self.log_low + self.log_high) / 2

    @cached_property
    def bin_width(self) -> float:
        """Width of a bin in log L0."""
        return (self.log_high - self.log_low) / self.bins

    def bin_of(self, l0: float | None) -> int | None:
        """The bin that `l0` lies in, or None outside the range, at 0 or not finite.

        A bin holds its lower edge; the last one holds both.
        """
        if l0 is None or not (self.low <= l0 <= self.high):
            return None
        index = int((math.log(l0) - self.log_low) / self.bin_width)
        return min(index, self.bins - 1)

    def bounds_of(self, index: int) -> tuple[float, float]:
        """Lower and upper L0 of the bin `index`."""
        return math.exp(self.log_edges[index]), math.exp(self.log_edges[index + 1])


@dataclass(frozen=True)
class Coverage:
    """What the finished trials of one group cover of a target.

    Args:
        target: the range and its bins.
        counts: finished trials in each bin, lowest L0 first.
        largest_gap: longest stretch of log L0 without a finished trial, ends of the range
            included, as a share of the range (0 to 1).
    """

    target: CoverageTarget
    counts: tuple[int, ...]
    largest_gap: float

    @property
    def bins(self) -> int:
        return self.target.bins

    @property
    def filled(self) -> int:
        """How many bins hold at least one finished trial."""
        return sum(count > 0 for count in self.counts)

    def as_record(self) -> dict[str, object]:
        """The entry of `status --json`: target, bins, filled, largest_gap."""
        return {
            "target": [self.target.low, self.target.high],
            "bins": self.bins,
            "filled": self.filled,
            "largest_gap": self.largest_gap,
        }


def bin_counts(l0s: Iterable[float | None], target: CoverageTarget) -> np.ndarray:
    """Finished trials in each bin, as an array of `target.bins` integers."""
    counts = np.zeros(target.bins, dtype=int)
    for l0 in l0s:
        index = target.bin_of(l0)
        if index is not None:
            counts[index] += 1
    return counts


def largest_gap(l0s: Iterable[float | None], target: CoverageTarget) -> float:
    """The longest stretch of log L0 without a finished trial, as a share of the range.

    1.0 where no trial landed inside.
    """
    inside = sorted(math.log(l0) for l0 in l0s if l0 is not None and target.low <= l0 <= target.high)
    points = [target.log_low, *inside, target.log_high]
    span = target.log_high - target.log_low
    return max(right - left for left, right in pairwise(points)) / span


def coverage_of(l0s: Iterable[float | None], target: CoverageTarget) -> Coverage:
    """The coverage that the final L0 of finished trials reach; None and NaN count as outside."""
    values = list(l0s)
    counts = tuple(int(count) for count in bin_counts(values, target))
    return Coverage(target=target, counts=counts, largest_gap=largest_gap(values, target))
