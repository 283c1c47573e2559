"""How log L0 of one group answers to the log coefficient, with its uncertainty.

While no trial has landed near the target range, a grid of straight lines (where the line crosses the middle of the
range, how steep it is) is weighed by what was seen, robust against plateaus and collapses. Afterwards smooth stretches
are interpolated, and between them, where L0 fell faster than any smooth curve does, nothing is assumed but that it
falls. The curve is taken to fall everywhere: what was seen at smaller and larger coefficients bounds what lies between.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import ndtr

from prolu_tune.search.coverage import CoverageTarget
from prolu_tune.search.smooth import SmoothCurve

USUAL_SLOPE = -1.45
NEAR = 0.8  # log L0 beyond the target that the interpolation still uses; farther points only bound it
FLOOR = 3.0  # log L0 below and above the target where values are cut, so that L0 = 0 has a place
SURPRISE = 2.5  # standard deviations
BRIDGE = 0.05  # share of the prediction that trusts only the bounds
STEEP, JUMP = 3.0, 0.25  # a fall of more than JUMP beyond the slope STEEP is a cliff
DEFAULT_NOISE = 0.045


@dataclass(frozen=True)
class Observation:
    """Log L0 seen (or foretold, then with `sd`) at a log coefficient."""

    x: float
    y: float
    sd: float
    number: int


@dataclass(frozen=True)
class ResponsePrior:
    """What is expected before a group has spoken: the log coefficient of the middle of the target, and the slope."""

    location: float
    location_sd: float
    slope: float = USUAL_SLOPE
    slope_sd: float = 0.45


def clipped_log(l0: float, target: CoverageTarget) -> float:
    """Log of `l0`, cut `FLOOR` outside the target so that 0 and huge values are finite."""
    low, high = target.log_low - FLOOR, target.log_high + FLOOR
    return min(max(math.log(l0), low), high) if l0 > 0 else low


def _truncated_mass(edges: np.ndarray, lower: np.ndarray, upper: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Mass between successive `edges` (first axis) of normal distributions cut to [lower, upper]."""
    floor = ndtr((lower - mean) / sd)
    mass = np.maximum(ndtr((upper - mean) / sd) - floor, 1e-4)
    return np.diff(ndtr((edges - mean) / sd) - floor, axis=0) / mass


class Response:
    """The curve of one group: `probabilities(xs)` of landing in each bin, `landing(xs)` mean and sd.

    Args:
        observations: what finished and stopped trials of the group showed.
        span: natural logarithms of the smallest and largest coefficient.
        target: the range of L0.
        prior: from the other groups.
    """

    def __init__(
        self,
        observations: Sequence[Observation],
        span: tuple[float, float],
        target: CoverageTarget,
        prior: ResponsePrior,
    ) -> None:
        self.observations = tuple(sorted(observations, key=lambda seen: (seen.x, seen.number)))
        self.span = span
        self.target = target
        self.prior = prior
        self.x = np.array([seen.x for seen in self.observations])
        self.y = np.array([seen.y for seen in self.observations])
        self.sd = np.array([seen.sd for seen in self.observations])
        self.near = (self.y > target.log_low - NEAR) & (self.y < target.log_high + NEAR) & (self.sd < 0.8)

    @property
    def located(self) -> bool:
        """Whether a trial has landed near the target, so that the curve is interpolated."""
        return bool(self.near.any())

    # -- the line before anything is near

    @cached_property
    def lines(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights, locations and slopes of straight lines, (k,) each, the improbable dropped."""
        low, high = self.span
        prior = self.prior
        steps = np.array([-1.2, 0.0, 1.2])
        location, slope = np.meshgrid(np.linspace(low - 1, high + 1, 45), prior.slope + prior.slope_sd * steps)
        location, slope = location.ravel(), np.minimum(slope.ravel(), -0.4)
        near = np.exp(-(((location - prior.location) / prior.location_sd) ** 2) / 2) / prior.location_sd
        weight = 0.85 * near + 0.15 * math.sqrt(2 * math.pi) / (high - low + 2)
        weight = weight * np.exp(-(((slope - prior.slope) / prior.slope_sd) ** 2) / 2)
        for x, y, sd in zip(self.x, self.y, self.sd, strict=True):
            weight = weight * (self._likelihood(y, sd, self.target.log_middle + slope * (x - location)) + 1e-6)
        keep = weight > 1e-3 * weight.max()
        return weight[keep] / weight[keep].sum(), location[keep], slope[keep]

    def _likelihood(self, y: float, sd: float, line: np.ndarray) -> np.ndarray:
        """Of log L0 = `y` where lines say `line`; a quarter is left to plateaus and collapses, which lie below the line."""
        spread = np.sqrt(sd**2 + 0.2**2 + (0.2 * np.abs(line - self.target.log_middle)) ** 2)
        floor, ceiling = self.target.log_low - FLOOR, self.target.log_high + FLOOR
        if y <= floor + 1e-9:
            return 0.75 * ndtr((floor - line) / spread) + 0.25 * 0.3 * (line > floor)
        if y >= ceiling - 1e-9:
            return 0.75 * ndtr((line - ceiling) / spread) + 0.25 * 0.1 * (line < ceiling)
        return 0.75 * np.exp(-(((y - line) / spread) ** 2) / 2) / spread / 2.5 + 0.25 * 0.3 * (line > y)

    # -- smooth stretches

    @cached_property
    def falling(self) -> np.ndarray:
        """Log L0 of all observations made to fall by isotonic regression."""
        weights = 1 / (DEFAULT_NOISE**2 + self.sd**2)
        return isotonic_regression(self.y, weights=weights, increasing=False).x

    @cached_property
    def _stretches(self) -> list[np.ndarray]:
        """Indices of the near observations, in stretches that cliffs separate."""
        near = np.flatnonzero(self.near)
        level = self.falling[near]
        cliff = -np.diff(level) > JUMP + STEEP * np.diff(self.x[near]) + np.hypot(self.sd[near][1:], self.sd[near][:-1])
        return np.split(near, np.flatnonzero(cliff) + 1)

    def on_shoulder(self, index: int) -> bool:
        """Whether an observation belongs to a smooth stretch, not to the middle of a cliff."""
        for stretch in self._stretches:
            if index in stretch:
                return bool(self.x[stretch[-1]] - self.x[stretch[0]] > 0.05)
        return False

    @cached_property
    def _curves(self) -> list[SmoothCurve]:
        curves = []
        for stretch in self._stretches:
            used = self._newest(stretch)
            slope, slope_sd = self.prior.slope, self.prior.slope_sd
            curves.append(SmoothCurve(self.x[used], self.y[used], self.sd[used], slope=slope, slope_sd=slope_sd))
        return curves

    def _newest(self, stretch: np.ndarray) -> np.ndarray:
        """At most a few observations a bin, the surest and newest, so that a fit stays quick."""
        per_bin = max(1, min(2, 48 // self.target.bins))
        if len(stretch) <= 24:
            return stretch
        places = np.floor((self.y[stretch] - self.target.log_low) / self.target.bin_width).astype(int)
        order = sorted(range(len(stretch)), key=lambda i: (self.sd[stretch[i]], -self.observations[stretch[i]].number))
        kept: dict[int, list[int]] = {}
        for i in order:
            members = kept.setdefault(int(places[i]), [])
            if len(members) < per_bin:
                members.append(int(stretch[i]))
        return np.array(sorted(index for members in kept.values() for index in members))

    @cached_property
    def noise(self) -> float:
        """Standard deviation of log L0 between trainings at one coefficient, as far as is known."""
        if not self.located:
            return DEFAULT_NOISE
        sizes = [len(curve.x) for curve in self._curves]
        variances = [curve.noise_variance for curve in self._curves]
        return math.sqrt(float(np.average(variances, weights=sizes)))

    def _pieces(self, xs: np.ndarray) -> list[tuple[np.ndarray, SmoothCurve]]:
        """Masks over `xs` with the curve that holds there: each cliff is shared in its middle."""
        ends = [(self.x[stretch[0]], self.x[stretch[-1]]) for stretch in self._stretches]
        cuts = [-np.inf, *((left[1] + right[0]) / 2 for left, right in pairwise(ends)), np.inf]
        return [((xs >= cuts[k]) & (xs < cuts[k + 1]), curve) for k, curve in enumerate(self._curves)]

    def _moments(self, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of a new trial, before bounds and hazards."""
        if not self.located:
            weight, mean, sd = self._line_components(xs)
            centre = weight @ mean
            return centre, np.sqrt(np.maximum(weight @ (sd**2 + mean**2) - centre**2, 1e-8))
        centre, spread = np.empty(len(xs)), np.empty(len(xs))
        for mask, curve in self._pieces(xs):
            if mask.any():
                centre[mask], spread[mask] = curve.moments(xs[mask])
        return centre, spread

    def _line_components(self, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weight, location, slope = self.lines
        mean = self.target.log_middle + slope[:, None] * (xs[None, :] - location[:, None])
        return weight, mean, np.sqrt(self.noise**2 + 0.15**2 + (0.12 * np.abs(mean - self.target.log_middle)) ** 2)

    # -- where the curve may not be trusted

    def bounds(self, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest log L0 that a falling curve allows at `xs`, infinite where nothing bounds it."""
        lower, upper = np.full(len(xs), -np.inf), np.full(len(xs), np.inf)
        if len(self.x):
            slack = SURPRISE * np.sqrt(self.noise**2 + self.sd**2)
            upper = np.where(self.x[None, :] <= xs[:, None], self.y + slack, np.inf).min(axis=1)
            lower = np.where(self.x[None, :] >= xs[:, None], self.y - slack, -np.inf).max(axis=1)
        crossed = lower > upper
        middle = np.where(crossed, (np.where(crossed, lower, 0) + np.where(crossed, upper, 0)) / 2, 0)
        lower = np.where(crossed, middle - SURPRISE * self.noise, lower)
        upper = np.where(crossed, middle + SURPRISE * self.noise, upper)
        return lower, upper

    @cached_property
    def _cliffs(self) -> list[tuple[float, float, float, float]]:
        """(left x, right x, left log L0, right log L0) of every cliff between smooth stretches."""
        level = self.falling
        pairs = zip(self._stretches, self._stretches[1:], strict=False) if self.located else ()
        return [(float(self.x[a[-1]]), float(self.x[b[0]]), float(level[a[-1]]), float(level[b[0]])) for a, b in pairs]

    def _hazards(self, xs: np.ndarray) -> np.ndarray:
        """Probability, for each of `xs`, that the curve has jumped away or gone flat before it gets there."""
        lost = np.zeros(len(xs))
        if not self.located:
            return lost
        near = np.flatnonzero(self.near)
        for side, outer in ((-1, near[0]), (1, near[-1])):
            beyond = np.flatnonzero((self.x - self.x[outer]) * side > 0)
            outside = (xs - self.x[outer]) * side > 0
            if len(beyond):
                wall = beyond[-1] if side < 0 else beyond[0]
                expected, spread = self._moments(self.x[wall : wall + 1])
                excess = (self.y[wall] - expected[0]) * -side - 0.3 - SURPRISE * math.hypot(spread[0], self.sd[wall])
                depth = np.clip((xs - self.x[outer]) / (self.x[wall] - self.x[outer]), 0, 1)
                lost = np.where(outside, np.maximum(lost, (0.95 if excess > 0 else 0.1) * depth), lost)
            else:
                lost = np.where(outside, np.maximum(lost, self._flatness(side)), lost)
        return lost

    def _flatness(self, side: int) -> float:
        """Probability that the curve is flat beyond its outermost near observation on `side` (-1: small coefficients)."""
        stretch = self._stretches[0 if side < 0 else -1]
        x, y, sd = self.x[stretch], self.y[stretch], self.sd[stretch]
        if side < 0:
            x, y, sd = -x[::-1], -y[::-1], sd[::-1]
        chance = 0.1
        inner = [i for i in range(len(x) - 1) if 0.1 <= x[-1] - x[i] <= 1.5]
        if inner:
            first = inner[-1]
            step, fall = x[-1] - x[first], y[-1] - y[first]
            spread = math.sqrt(2 * self.noise**2 + sd[-1] ** 2 + sd[first] ** 2)
            sloped = math.hypot(spread, self.prior.slope_sd * step)
            flat_density = math.exp(-((fall / spread) ** 2) / 2) / spread
            sloped_density = math.exp(-(((fall - self.prior.slope * step) / sloped) ** 2) / 2) / sloped
            chance = chance * flat_density / (chance * flat_density + (1 - chance) * sloped_density + 1e-12)
        return chance

    # -- what the search asks

    def landing(self, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the log L0 of a new trial at each of `xs`, within the bounds."""
        mean, sd = self._moments(xs)
        lower, upper = self.bounds(xs)
        mean, sd = np.clip(mean, lower, upper), np.sqrt(sd**2 + self._hazards(xs))
        for left, right, top, bottom in self._cliffs:
            inside = (xs > left) & (xs < right)
            mean = np.where(inside, np.interp(xs, [left, right], [top, bottom]), mean)
            sd = np.where(inside, (top - bottom) / math.sqrt(12), sd)
        return mean, sd

    def probabilities(self, xs: np.ndarray) -> np.ndarray:
        """Probability of a new trial at each of `xs` to land in each bin, (m, bins); the rest lands outside."""
        lower, upper = self.bounds(xs)
        slack = 2 * self.noise
        lower, upper = lower - slack, upper + slack
        edges = np.clip(self.target.log_edges[:, None], lower, upper)
        if self.located:
            inside = np.zeros((self.target.bins, len(xs)))
            for mask, curve in self._pieces(xs):
                if mask.any():
                    mean, sd = curve.moments(xs[mask])
                    inside[:, mask] = _truncated_mass(edges[:, mask], lower[mask], upper[mask], mean, sd)
        else:
            # One sum over the whole range, shared evenly: bins cannot be told apart yet, and lines are many.
            weight, mean, sd = self._line_components(xs)
            whole = weight @ _truncated_mass(edges[[0, -1], None, :], lower, upper, mean, sd)[0]
            inside = np.tile(whole / self.target.bins, (self.target.bins, 1))
        with np.errstate(invalid="ignore"):
            uniform = np.nan_to_num(np.diff(edges, axis=0) / (upper - lower))
        inside = (1 - BRIDGE) * np.clip(inside, 0, 1) + BRIDGE * uniform
        inside = inside * (1 - self._hazards(xs))
        for left, right, top, bottom in self._cliffs:
            here = (xs > left) & (xs < right)
            share = np.diff(np.clip(self.target.log_edges, bottom, top)) / (top - bottom)
            inside[:, here] = share[:, None]
        return inside.T

    def latent(self) -> tuple[np.ndarray, np.ndarray]:
        """The curve itself at each observation, freed of noise where neighbours allow, and its standard deviation."""
        level, sd = self.y.copy(), np.sqrt(self.noise**2 + self.sd**2)
        if self.located:
            mean, spread = self._moments(self.x[self.near])
            level[self.near] = mean
            sd[self.near] = np.sqrt(np.maximum(spread**2 - self.noise**2, 1e-4))
        return level, sd
