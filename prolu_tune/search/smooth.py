"""A smooth stretch of a response curve: a Gaussian process around a falling line, averaged over roughness and noise."""

import math
from functools import cached_property

import numpy as np

_LENGTHS = (0.45, 1.6)  # log coefficient over which a curve changes its ways
_AMPLITUDES = (0.08, 0.35)  # log L0 by which it departs from a line
_NOISES = (0.02, 0.04, 0.07)  # log L0 between seeds
_LEVEL_VARIANCE = 9.0
_WORTH = 4.0  # log evidence below the best at which a fit is dropped


def _matern52(distance: np.ndarray, length: float) -> np.ndarray:
    scaled = math.sqrt(5.0) * np.abs(distance) / length
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)


class SmoothCurve:
    """The posterior over log L0 at any log coefficient, given observations without a jump between them.

    Instead of one fitted roughness, amplitude and noise it keeps a small grid of them, weighted by their evidence, so
    that three points do not look like certainty.

    Args:
        x: log coefficients, (n,), n at least 1.
        y: log L0, (n,).
        sd: standard deviation of each beyond the noise (0 for a finished trial), (n,).
        slope: expected slope, negative.
        slope_sd: its standard deviation.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, sd: np.ndarray, *, slope: float, slope_sd: float) -> None:
        self.x, self.y, self.sd = x, y, sd
        self.slope, self.slope_sd = slope, slope_sd
        self._centre, self._level = float(x.mean()), float(y.mean())

    def _line(self, xs: np.ndarray) -> np.ndarray:
        return self._level + self.slope * (xs - self._centre)

    def _covariance(self, xs: np.ndarray, others: np.ndarray) -> np.ndarray:
        return _LEVEL_VARIANCE + self.slope_sd**2 * np.outer(xs - self._centre, others - self._centre)

    @cached_property
    def _fits(self) -> list[tuple[float, float, float, float, np.ndarray, np.ndarray]]:
        """(weight, length, amplitude, noise, inverse Cholesky factor, weights of the residuals) of each fit kept."""
        trend = self._covariance(self.x, self.x)
        residual = self.y - self._line(self.x)
        grid = [(length, amplitude, noise) for length in _LENGTHS for amplitude in _AMPLITUDES for noise in _NOISES]
        shapes = {length: _matern52(self.x[:, None] - self.x[None, :], length) for length in _LENGTHS}
        stack = np.array([trend + a**2 * shapes[length] + np.diag(n**2 + self.sd**2) for length, a, n in grid])
        factors = np.linalg.cholesky(stack)
        inverses = np.linalg.inv(factors)
        white = inverses @ residual
        evidence = -0.5 * (white**2).sum(axis=1) - np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
        # Smooth curves are the rule; a rough one has to earn its weight.
        evidence = evidence - np.array([0.7 * (length < 1) + 0.5 * (amplitude > 0.1) for length, amplitude, _ in grid])
        weight = np.where(evidence > evidence.max() - _WORTH, np.exp(evidence - evidence.max()), 0.0)
        weight = weight / weight.sum()
        return [(float(weight[k]), *grid[k], inverses[k], inverses[k].T @ white[k]) for k in range(len(grid)) if weight[k] > 0]

    @cached_property
    def noise_variance(self) -> float:
        """Variance of log L0 between trainings at one coefficient."""
        return sum(fit[0] * fit[3] ** 2 for fit in self._fits)

    def components(self, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights (k,), means (k, m) and standard deviations (k, m) of the log L0 of a new training at each of `xs`."""
        cross_trend = self._covariance(xs, self.x)
        own_trend = _LEVEL_VARIANCE + self.slope_sd**2 * (xs - self._centre) ** 2
        line = self._line(xs)
        shapes = {length: _matern52(xs[:, None] - self.x[None, :], length) for length in _LENGTHS}
        weights, means, sds = [], [], []
        for weight, length, amplitude, noise, inverse, coefficients in self._fits:
            cross = cross_trend + amplitude**2 * shapes[length]
            variance = own_trend + amplitude**2 - ((cross @ inverse.T) ** 2).sum(axis=1)
            weights.append(weight)
            means.append(line + cross @ coefficients)
            sds.append(np.sqrt(np.maximum(variance, 0) + noise**2))
        return np.array(weights), np.array(means), np.array(sds)

    def moments(self, xs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of `components`, (m,) each."""
        weight, mean, sd = self.components(xs)
        centre = weight @ mean
        return centre, np.sqrt(np.maximum(weight @ (sd**2 + mean**2) - centre**2, 1e-8))
