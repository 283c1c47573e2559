"""Where a course of L0 ends: what L0 at 5, 10, 20, 40 ... % of a training says of the end, learned as trials finish."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from prolu_tune.search.coverage import CoverageTarget
from prolu_tune.search.records import DECISION_FRACTIONS, Group, TrialRecord
from prolu_tune.search.response import clipped_log

# Before any trial has finished: by how much log L0 still falls after each fraction (mean, standard deviation) and
# how far that may depend on L0 itself. Set by 30 short real trainings (falls of 0.2-0.9 after 40 %, 1-3 after 10 %)
# and by the knowledge that long ones settle much earlier.
_STILL_FALLS = {0.05: (1.2, 1.3), 0.1: (0.9, 0.9), 0.2: (0.55, 0.55), 0.4: (0.22, 0.3), 0.6: (0.1, 0.15), 0.8: (0.03, 0.08)}
_SLOPE_SD = {0.05: 1.0, 0.1: 0.7, 0.2: 0.4, 0.4: 0.2, 0.6: 0.1, 0.8: 0.05}
_SCALE = {0.05: 0.4, 0.1: 0.3, 0.2: 0.2, 0.4: 0.1, 0.6: 0.06, 0.8: 0.04}
_GROUP_SD = 0.15
_MOVEMENT_SD, _MOVEMENT_SCALE = 1.0, 0.2  # log L0 since half the fraction: what is not known of it, what is never known
_NEWEST = 400  # finished trials that are learned from
# Real courses undershoot: the lower they end, the more L0 rises again before the end, and a line cannot say that.
_BEND_EVERY, _BEND_WIDTH = 0.5, 0.6  # log L0 between the bends of the line, and how wide each is
_BENDS = (0.02, 0.3, 1.2)  # log L0 by which a line may bend; left-out trials weigh them
_NEARBY, _NEARBY_WEIGHT = 0.5, 3.0  # log L0 within which errors are alike, and what the common error weighs against them
_GRID = 0.03  # log L0 between the ends that are compared
_STRANGE = 0.001  # density of courses that are like nothing seen before, of that of the most usual one
_LEAST_VARIANCE = 1e-4


def decision_index(fraction: float) -> int | None:
    """Index of the latest decision fraction that a trial at `fraction` has passed, or None before the first."""
    passed = sum(point <= fraction + 1e-9 for point in DECISION_FRACTIONS)
    return passed - 1 if passed else None


def _quadratic(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """x^T A x of each row x of (n, k), (n,)."""
    return ((rows @ matrix) * rows).sum(axis=1)


def _features(ends: np.ndarray, target: CoverageTarget) -> np.ndarray:
    """(1, log L0 about the middle of the target, bends), (n, 2 + b), of final log L0 (n,)."""
    bends = np.arange(clipped_log(0.0, target), clipped_log(math.inf, target) + _BEND_EVERY, _BEND_EVERY)
    line = np.stack([np.ones_like(ends), ends - target.log_middle], axis=-1)
    return np.concatenate([line, np.exp(-(((ends[:, None] - bends) / _BEND_WIDTH) ** 2) / 2)], axis=-1)


def _regress(
    design: np.ndarray,
    seen: np.ndarray,
    codes: np.ndarray,
    prior: np.ndarray,
    precision: np.ndarray,
    least: np.ndarray,
    variance: float,
) -> tuple[np.ndarray, ...]:
    """Bayesian regression of seen (n, 2) on design (n, f), in groups `codes` (n,).

    Args:
        design: features of each trial.
        seen: what is to be explained.
        codes: group of each trial, counted from 0.
        prior: expected coefficients, (f, 2).
        precision: of that expectation, (f, f).
        least: covariance of the noise if nothing were seen, (2, 2).
        variance: of the noise as it is taken to be.

    Returns:
        Inverse (f, f), coefficients (f, 2), leverage (n,), by how much each trial is missed when left out (n, 2), shrunk
        offset of each group (g,) and its variance (g,), covariance of the noise (2, 2).
    """
    inverse = np.linalg.inv(precision * variance + design.T @ design)
    coefficients = inverse @ (variance * (precision @ prior) + design.T @ seen)
    leverage = np.minimum(_quadratic(design, inverse), 0.8)
    missed = (seen - design @ coefficients) / (1 - leverage)[:, None]
    sizes = np.bincount(codes)
    weight = sizes / (sizes + variance / _GROUP_SD**2)
    shift = weight * np.bincount(codes, weights=missed[:, 0]) / sizes
    missed[:, 0] -= shift[codes]
    noise = (2 * least + missed.T @ missed) / (2 + len(seen)) + _LEAST_VARIANCE * np.eye(2)
    return inverse, coefficients, leverage, missed, shift, _GROUP_SD**2 * (1 - weight), noise


@cache
def _ends_compared(target: CoverageTarget) -> tuple[np.ndarray, np.ndarray]:
    """Final log L0 (k,) that courses are compared with, and their features (k, 2 + b)."""
    low, high = clipped_log(0.0, target), clipped_log(math.inf, target)
    ends = np.linspace(low, high, math.ceil((high - low) / _GRID) + 1)
    return ends, _features(ends, target)


@dataclass(frozen=True)
class _Fit:
    """What courses look like at one decision fraction, for each end of a grid of k ends.

    Args:
        weight: how much this fit is believed, of 1.
        mean: (k, 2) expected (log L0 above the end, movement since half the fraction).
        covariance: (k, 2, 2) of a new trial about it, the group's offset aside.
        offsets: (offset of the first, variance) by group.
    """

    weight: float
    mean: np.ndarray
    covariance: np.ndarray
    offsets: dict[Group, tuple[float, float]]


class CourseModel:
    """Says how well each end agrees with the beginning of a course, learned from the finished trials of all groups.

    At each point of decision Bayesian regression maps the end of a trial to where its course was then: a line with as
    many bends as foretell left-out trials best; each group has its own offset, shrunk towards the common line. What
    it missed left-out trials by is its uncertainty. From ends to courses and not the other way: where courses do not
    differ yet, every end agrees with them, instead of the average end. With nothing finished the prior is wide.
    """

    def __init__(self, records: Sequence[TrialRecord], target: CoverageTarget) -> None:
        self.target = target
        finished = [record for record in records if record.outcome == "finished" and record.course and record.l0 is not None]
        self._finished = finished[-_NEWEST:]
        self._fits: dict[int, list[_Fit]] = {}
        self.ends, self._grid = _ends_compared(target)

    @cached_property
    def _learned(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of the finished trials: milestones (n, 2, 6), final log L0 (n,), its features (n, 2 + b), nearness to ends (k, n)."""
        logs = np.array([record.milestones for record in self._finished])
        ends = np.array([clipped_log(record.l0 or 0.0, self.target) for record in self._finished])
        near = np.exp(-(((self.ends[:, None] - ends) / _NEARBY) ** 2) / 2)
        return logs, ends, _features(ends, self.target), near

    def _seen(self, logs: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Log L0 at the fraction (n,) and its movement since half of it (n,), 0 where not known, from milestones."""
        now, before = (np.clip(logs[..., row, index], self.ends[0], self.ends[-1]) for row in (0, 1))
        return now, np.nan_to_num(now - before)

    def _fit(self, index: int) -> list[_Fit]:
        if index not in self._fits:
            rows = np.zeros(0, dtype=int)
            if self._finished:
                rows = np.flatnonzero(~np.isnan(self._learned[0][:, 0, index]))
            fits = [self._fit_bent(index, bend, rows) for bend in (_BENDS if len(rows) else _BENDS[:1])]
            best = max(fit.weight for fit in fits)
            total = sum(math.exp(fit.weight - best) for fit in fits)
            shares = [replace(fit, weight=math.exp(fit.weight - best) / total) for fit in fits]
            self._fits[index] = [fit for fit in shares if fit.weight > 0.02]
        return self._fits[index]

    def _fit_bent(self, index: int, bend: float, rows: np.ndarray) -> _Fit:
        """A line with such bends; its weight is still how well it foretold left-out trials, as log density."""
        point = DECISION_FRACTIONS[index]
        fall, fall_sd = _STILL_FALLS[point]
        grid = self._grid
        bends = np.full(grid.shape[1] - 2, bend * _SCALE[point] / 0.2)
        prior = np.zeros((2 + len(bends), 2))
        prior[0, 0] = fall
        precision = np.diag(1 / np.concatenate([[fall_sd, _SLOPE_SD[point]], bends]) ** 2)
        least = np.diag([_SCALE[point] ** 2, _MOVEMENT_SCALE**2])
        if not len(rows):
            known = _quadratic(grid, np.linalg.inv(precision))
            spread = known[:, None, None] * np.diag([1.0, 0.0]) + least + np.diag([_GROUP_SD**2, _MOVEMENT_SD**2])
            return _Fit(0.0, grid @ prior, spread, {})
        logs, ends, design, near = self._learned
        ends, design, near = ends[rows], design[rows], near[:, rows]
        now, moved = self._seen(logs[rows], index)
        seen = np.stack([now - ends, moved], axis=-1)
        numbers: dict[Group, int] = {}
        codes = np.array([numbers.setdefault(self._finished[row].group, len(numbers)) for row in rows])
        # Twice: how much is believed of the prior and of the groups depends on the noise, which is not known before.
        first = _regress(design, seen, codes, prior, precision, least, float(least[0, 0]))
        inverse, coefficients, leverage, missed, shift, shift_variance, noise = _regress(
            design, seen, codes, prior, precision, least, float(first[-1][0, 0])
        )
        strange = _quadratic(missed, np.linalg.inv(noise))
        # A new trial is missed by more than the noise where few have ended nearby, and where those were missed by more.
        score = -0.5 * float(
            (strange * (1 - leverage) - 2 * np.log(1 - leverage)).sum() + len(rows) * np.linalg.slogdet(noise)[1]
        )
        local = (_NEARBY_WEIGHT + near @ strange / 2) / (_NEARBY_WEIGHT + near.sum(axis=1))
        local = local + _quadratic(grid, inverse)
        offsets = {group: (float(shift[code]), float(shift_variance[code])) for group, code in numbers.items()}
        return _Fit(score, grid @ coefficients, local[:, None, None] * noise, offsets)

    def likelihood(self, group: Group, logs: np.ndarray, fraction: float) -> np.ndarray | None:
        """How well each of `ends` agrees with a trial seen up to `fraction`, (k,), up to a factor.

        Args:
            group: the trial's.
            logs: its `milestones`, (2, 6).
            fraction: share of the training done.

        Returns:
            None before the first decision fraction.
        """
        index = decision_index(fraction)
        if index is None or math.isnan(logs[0, index]):
            return None
        return self._likelihoods([group], logs[None], index, strange=_STRANGE)[0]

    def predict(self, group: Group, logs: np.ndarray, fraction: float) -> tuple[float, float] | None:
        """Mean and standard deviation of the final log L0, nothing else being known; arguments as in `likelihood`."""
        index = decision_index(fraction)
        if index is None or math.isnan(logs[0, index]):
            return None
        means, sds = self._moments(self._likelihoods([group], logs[None], index))
        return float(means[0]), float(sds[0])

    def predict_stopped(self, records: Sequence[TrialRecord]) -> dict[int, tuple[float, float]]:
        """By trial number, what `predict` says of every stopped trial that passed a decision fraction."""
        batches: dict[int, list[TrialRecord]] = {}
        for record in records:
            index = decision_index(record.fraction) if record.outcome == "stopped" else None
            if index is not None and not math.isnan(record.milestones[0, index]):
                batches.setdefault(index, []).append(record)
        told = {}
        for index, batch in batches.items():
            logs = np.array([record.milestones for record in batch])
            means, sds = self._moments(self._likelihoods([record.group for record in batch], logs, index))
            told.update(zip((record.number for record in batch), zip(means.tolist(), sds.tolist(), strict=True), strict=True))
        return told

    def _moments(self, likelihoods: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, (n,) each, of ends weighed by (n, k)."""
        shares = likelihoods / likelihoods.sum(axis=1, keepdims=True)
        mean = shares @ self.ends
        return mean, np.sqrt(np.maximum(shares @ self.ends**2 - mean**2, (_GRID / 2) ** 2))

    def _likelihoods(self, groups: Sequence[Group], logs: np.ndarray, index: int, *, strange: float = 0.0) -> np.ndarray:
        """(n, k) of trials with milestones (n, 2, 6), of which a share `strange` is like nothing seen before."""
        now, moved = self._seen(logs, index)
        total = np.full((len(now), len(self.ends)), 1e-300)
        for fit in self._fit(index):
            offset, extra = np.array([fit.offsets.get(group, (0.0, _GROUP_SD**2)) for group in groups]).T[..., None]
            first = (now[:, None] - self.ends) - fit.mean[:, 0] - offset
            second = moved[:, None] - fit.mean[:, 1]
            a, b, c = fit.covariance[:, 0, 0] + extra, fit.covariance[:, 0, 1], fit.covariance[:, 1, 1]
            determinant = a * c - b**2
            away = (c * first**2 - 2 * b * first * second + a * second**2) / determinant
            total += fit.weight * (np.exp(-away / 2) + strange) / (2 * math.pi * np.sqrt(determinant))
        return total
