"""How log L0 of one group answers to the log coefficient, with its uncertainty.

Two stages. While no trial has landed near the target range, a grid of straight lines (where the
line crosses the middle of the range, how steep it is) is weighed by what was seen, robust against
plateaus and collapses. Afterwards a Gaussian process around a line interpolates, averaged over
a small grid of roughness, amplitude and noise instead of one fitted choice, so that a cliff in one
group and a smooth power law in the next need no switch. In both stages the curve is taken to fall:
what was seen at smaller and larger coefficients bounds what lies between.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import ndtr

from prolu_tune.search.coverage import CoverageTarget

NEAR = 0.8  # log L0 beyond the target that the interpolation still uses; farther points only bound it
FLOOR = 3.0  # log L0 below and above the target where values are cut, so that L0 = 0 has a place
SURPRISE = 2.5  # standard deviations
BRIDGE = 0.05  # share of the prediction that trusts only the bounds
DEFAULT_NOISE = 0.045
_LENGTHS = (0.45, 1.6)
_AMPLITUDES = (0.08, 0.35)
_NOISES = (0.02, 0.04, 0.07)


@dataclass(frozen=True)
class Observation:
    """Log L0 seen (or foretold, then with `sd`) at a log coefficient."""

    x: float
    y: float
    sd: float
    number: int
    finished: bool


@dataclass(frozen=True)
class ResponsePrior:
    """What is expected before a group has spoken: where its curve crosses the middle of the target, and how steeply."""

    location: float
    location_sd: float
    slope: float = -1.45
    slope_sd: float = 0.45


def clipped_log(l0: float, target: CoverageTarget) -> float:
    """Log of `l0`, cut `FLOOR` outside the target so that 0 and huge values are finite."""
    low, high = target.log_low - FLOOR, target.log_high + FLOOR
    return min(max(math.log(l0), low), high) if l0 > 0 else low


def _matern52(distance: np.ndarray, length: float) -> np.ndarray:
    scaled = math.sqrt(5.0) * np.abs(distance) / length
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)


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
    def _lines(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights, locations and slopes of straight lines, (205,) each, the improbable dropped."""
        low, high = self.span
        location, slope = np.meshgrid(
            np.linspace(low - 1, high + 1, 61), self.prior.slope + self.prior.slope_sd * np.array([-1.5, -0.75, 0.0, 0.75, 1.5])
        )
        location, slope = location.ravel(), np.minimum(slope.ravel(), -0.4)
        gap = (location - self.prior.location) / self.prior.location_sd
        weight = 0.85 * np.exp(-(gap**2) / 2) / self.prior.location_sd + 0.15 * math.sqrt(2 * math.pi) / (high - low + 2)
        weight = weight * np.exp(-(((slope - self.prior.slope) / self.prior.slope_sd) ** 2) / 2)
        middle = self.target.log_middle
        floor, ceiling = self.target.log_low - FLOOR, self.target.log_high + FLOOR
        for x, y, sd in zip(self.x, self.y, self.sd, strict=True):
            line = middle + slope * (x - location)
            spread = np.sqrt(sd**2 + 0.2**2 + (0.2 * np.abs(line - middle)) ** 2)
            if y <= floor + 1e-9:
                likelihood = 0.75 * ndtr((floor - line) / spread) + 0.25 * (line > floor) * 0.3
            elif y >= ceiling - 1e-9:
                likelihood = 0.75 * ndtr((line - ceiling) / spread) + 0.25 * (line < ceiling) * 0.1
            else:
                likelihood = 0.75 * np.exp(-(((y - line) / spread) ** 2) / 2) / spread / 2.5
                # A plateau (seen below the line, above the target) or a collapse (seen below both).
                likelihood = likelihood + 0.25 * 0.3 * (line > y)
            weight = weight * (likelihood + 1e-6)
        weight = weight / weight.sum()
        keep = weight > 1e-3 * weight.max()
        return weight[keep] / weight[keep].sum(), location[keep], slope[keep]

    # -- the interpolation

    @cached_property
    def _used(self) -> np.ndarray:
        """Indices of the near observations, at most three a bin (the newest), so that a fit stays quick."""
        near = np.flatnonzero(self.near)
        per_bin = max(1, min(4, 56 // self.target.bins))
        if len(near) <= per_bin * 4:
            return near
        places = np.floor((self.y[near] - self.target.log_low) / self.target.bin_width).astype(int)
        newest: dict[int, list[int]] = {}
        for index, place in sorted(zip(near, places, strict=True), key=lambda pair: -self.observations[pair[0]].number):
            kept = newest.setdefault(place, [])
            if len(kept) < per_bin:
                kept.append(int(index))
        return np.array(sorted(index for kept in newest.values() for index in kept))

    @cached_property
    def _fits(self) -> list[tuple[float, float, float, float, np.ndarray, np.ndarray]]:
        """(weight, length, amplitude, noise, inverse Cholesky factor, weights of the residuals) of each fit kept."""
        x, y, sd = self.x[self._used], self.y[self._used], self.sd[self._used]
        centred = x - self._centre
        trend = 9.0 + self.prior.slope_sd**2 * np.outer(centred, centred)
        residual = y - self._line(x)
        fits = []
        for length in _LENGTHS:
            shape = _matern52(x[:, None] - x[None, :], length)
            for amplitude in _AMPLITUDES:
                for noise in _NOISES:
                    covariance = trend + amplitude**2 * shape + np.diag(noise**2 + sd**2)
                    factor = np.linalg.cholesky(covariance)
                    inverse = np.linalg.inv(factor)
                    white = inverse @ residual
                    evidence = -0.5 * white @ white - np.log(np.diag(factor)).sum()
                    # Smooth curves are the rule; a rough one has to earn its weight.
                    evidence -= 0.7 * (length < 1) + 0.5 * (amplitude > 0.1)
                    fits.append((evidence, length, amplitude, noise, inverse, inverse.T @ white))
        best = max(fit[0] for fit in fits)
        kept = [fit for fit in fits if fit[0] > best - 4]
        total = sum(math.exp(fit[0] - best) for fit in kept)
        return [(math.exp(fit[0] - best) / total, *fit[1:]) for fit in kept]

    @cached_property
    def _centre(self) -> float:
        return float(self.x[self._used].mean())

    def _line(self, x: np.ndarray) -> np.ndarray:
        level = float(self.y[self._used].mean())
        return level + self.prior.slope * (x - self._centre)

    @cached_property
    def noise(self) -> float:
        """Standard deviation of log L0 between trainings at one coefficient, as far as is known."""
        if not self.located:
            return DEFAULT_NOISE
        return math.sqrt(sum(fit[0] * fit[3] ** 2 for fit in self._fits))

    def _components(self, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights (k,), means and standard deviations (k, m) of the landing of a trial at each of `xs`."""
        if not self.located:
            weight, location, slope = self._lines
            mean = self.target.log_middle + slope[:, None] * (xs[None, :] - location[:, None])
            sd = np.sqrt(self.noise**2 + 0.15**2 + (0.12 * np.abs(mean - self.target.log_middle)) ** 2)
            return weight, mean, sd
        x = self.x[self._used]
        centred, new = x - self._centre, xs - self._centre
        cross_trend = 9.0 + self.prior.slope_sd**2 * np.outer(new, centred)
        own_trend = 9.0 + self.prior.slope_sd**2 * new**2
        line = self._line(xs)
        shapes = {length: _matern52(xs[:, None] - x[None, :], length) for length in _LENGTHS}
        weights, means, sds = [], [], []
        for weight, length, amplitude, noise, inverse, coefficients in self._fits:
            cross = cross_trend + amplitude**2 * shapes[length]
            white = cross @ inverse.T
            variance = own_trend + amplitude**2 - (white**2).sum(axis=1)
            weights.append(weight)
            means.append(line + cross @ coefficients)
            sds.append(np.sqrt(np.maximum(variance, 0) + noise**2))
        return np.array(weights), np.array(means), np.array(sds)

    # -- monotone bounds

    def bounds(self, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest log L0 that a falling curve allows at `xs`, infinite where nothing bounds it."""
        lower, upper = np.full(len(xs), -np.inf), np.full(len(xs), np.inf)
        if len(self.x):
            slack = SURPRISE * np.sqrt(self.noise**2 + self.sd**2)
            left = self.x[None, :] <= xs[:, None]
            upper = np.where(left, self.y + slack, np.inf).min(axis=1)
            lower = np.where(~left | (self.x[None, :] == xs[:, None]), self.y - slack, -np.inf).max(axis=1)
        crossed = lower > upper
        middle = (lower + upper) / 2
        lower = np.where(crossed, middle - SURPRISE * self.noise, lower)
        upper = np.where(crossed, middle + SURPRISE * self.noise, upper)
        return lower, upper

    def _hazards(self, xs: np.ndarray) -> np.ndarray:
        """Probability, for each of `xs`, that the curve has jumped or gone flat there and the interpolation is void."""
        lost = np.zeros(len(xs))
        if not self.located:
            return lost
        near = np.flatnonzero(self.near)
        for side, outer in ((-1, near[0]), (1, near[-1])):
            beyond = np.flatnonzero((self.x - self.x[outer]) * side > 0)
            if len(beyond):
                wall = beyond[-1] if side < 0 else beyond[0]
                expected, spread = self._moments(self.x[wall : wall + 1])
                excess = (self.y[wall] - expected[0]) * -side - 0.3 - SURPRISE * math.hypot(spread[0], self.sd[wall])
                chance = 0.95 if excess > 0 else 0.1
                depth = (xs - self.x[outer]) / (self.x[wall] - self.x[outer])
                lost = np.maximum(lost, chance * np.clip(depth, 0, 1))
            else:
                flat = self._flatness(side)
                lost = np.maximum(lost, np.where((xs - self.x[outer]) * side > 0, flat, 0.0))
        return lost

    def _flatness(self, side: int) -> float:
        """Probability that the curve is flat beyond its outermost near observation on `side` (-1: small coefficients)."""
        x, y, sd = self.x[self.near], self.y[self.near], self.sd[self.near]
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

    def _moments(self, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        weight, mean, sd = self._components(xs)
        centre = weight @ mean
        return centre, np.sqrt(np.maximum(weight @ (sd**2 + mean**2) - centre**2, 1e-8))

    def latent(self) -> tuple[np.ndarray, np.ndarray]:
        """The curve itself at each observation, freed of noise where neighbours allow, and its standard deviation."""
        level, sd = self.y.copy(), np.sqrt(self.noise**2 + self.sd**2)
        if self.located:
            mean, spread = self._moments(self.x[self.near])
            level[self.near] = mean
            sd[self.near] = np.sqrt(np.maximum(spread**2 - self.noise**2, 1e-4))
        return level, sd

    def landing(self, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the log L0 of a new trial at each of `xs`, within the bounds."""
        mean, sd = self._moments(xs)
        lower, upper = self.bounds(xs)
        lost = self._hazards(xs)
        return np.clip(mean, lower, upper), np.sqrt(sd**2 + lost)

    def probabilities(self, xs: np.ndarray) -> np.ndarray:
        """Probability of a new trial at each of `xs` to land in each bin, (m, bins); the rest lands outside."""
        weight, mean, sd = self._components(xs)
        lower, upper = self.bounds(xs)
        slack = 2 * self.noise
        lower, upper = lower - slack, upper + slack
        edges = np.clip(self.target.log_edges[:, None], lower, upper)
        floor = ndtr((lower - mean) / sd)
        mass = np.maximum(ndtr((upper - mean) / sd) - floor, 1e-4)
        cumulative = (ndtr((edges[:, None, :] - mean) / sd) - floor) / mass
        inside = np.einsum("k,ekm->em", weight, np.diff(cumulative, axis=0))
        with np.errstate(invalid="ignore"):
            uniform = np.nan_to_num(np.diff(edges, axis=0) / (upper - lower))
        inside = (1 - BRIDGE) * np.clip(inside, 0, 1) + BRIDGE * uniform
        return (inside * (1 - self._hazards(xs))).T
