"""Where a course of L0 ends: how L0 at 5, 10, 20, 40 ... % of a training foretells the end, learned as trials finish."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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
_NEWEST = 400  # finished trials that are learned from


def decision_index(fraction: float) -> int | None:
    """Index of the latest decision fraction that a trial at `fraction` has passed, or None before the first."""
    passed = sum(point <= fraction + 1e-9 for point in DECISION_FRACTIONS)
    return passed - 1 if passed else None


@dataclass(frozen=True)
class _Fit:
    """A line at one decision fraction: coefficients (3,), their covariance, residual variance, (offset, variance) by group."""

    coefficients: np.ndarray
    covariance: np.ndarray
    variance: float
    offsets: dict[Group, tuple[float, float]]


class CourseModel:
    """Predicts the end of a course from its beginning, learned from the finished trials of all groups.

    At each point of decision a Bayesian line maps (log L0 there, how fast it is moving) to how far log L0 still
    falls; each group has its own offset, shrunk towards the common line. With nothing finished the prior is wide.
    """

    def __init__(self, records: Sequence[TrialRecord], target: CoverageTarget) -> None:
        self.target = target
        finished = [record for record in records if record.outcome == "finished" and record.course and record.l0 is not None]
        self._finished = finished[-_NEWEST:]
        self._fits: dict[int, _Fit] = {}

    def _features(self, logs: np.ndarray, index: int) -> np.ndarray:
        """(1, log L0 about the middle of the target, movement since half the fraction), (..., 3), from milestones."""
        low, high = clipped_log(0.0, self.target), clipped_log(math.inf, self.target)
        now, before = np.clip(logs[..., 0, index], low, high), np.clip(logs[..., 1, index], low, high)
        return np.stack([np.ones_like(now), now - self.target.log_middle, np.nan_to_num(now - before)], axis=-1)

    @cached_property
    def _finished_logs(self) -> tuple[np.ndarray, np.ndarray]:
        """Milestones (n, 2, 6) and final log L0 (n,) of the finished trials."""
        ends = np.array([clipped_log(record.l0 or 0.0, self.target) for record in self._finished])
        return np.array([record.milestones for record in self._finished]), ends

    def _fit(self, index: int) -> _Fit:
        if index in self._fits:
            return self._fits[index]
        point = DECISION_FRACTIONS[index]
        mean, spread = _STILL_FALLS[point]
        prior_mean = np.array([mean, 0.0, 0.0])
        precision = np.diag(1 / np.array([spread, _SLOPE_SD[point], 0.5]) ** 2)
        fit = _Fit(prior_mean, np.linalg.inv(precision), _SCALE[point] ** 2 + _GROUP_SD**2, {})
        if self._finished:
            logs, ends = self._finished_logs
            seen = np.flatnonzero(~np.isnan(logs[:, 0, index]))
            if len(seen):
                design = self._features(logs[seen], index)
                falls = design[:, 1] + self.target.log_middle - ends[seen]
                numbers: dict[Group, int] = {}
                codes = np.array([numbers.setdefault(self._finished[row].group, len(numbers)) for row in seen])
                variance, shift, shift_variance = fit.variance, np.zeros(0), np.zeros(0)
                coefficients, covariance = fit.coefficients, fit.covariance
                for _ in range(3):
                    covariance = np.linalg.inv(precision + design.T @ design / variance)
                    coefficients = covariance @ (precision @ prior_mean + design.T @ falls / variance)
                    leverage = np.einsum("ij,jk,ik->i", design, covariance, design) / variance
                    residual = (falls - design @ coefficients) / np.maximum(1 - leverage, 0.2)
                    shift, shift_variance = self._group_offsets(residual, codes, variance)
                    within = residual - shift[codes]
                    variance = (2 * _SCALE[point] ** 2 + float((within**2).sum())) / (2 + len(seen)) + 1e-6
                offsets = {group: (float(shift[code]), float(shift_variance[code])) for group, code in numbers.items()}
                fit = _Fit(coefficients, covariance, variance, offsets)
        self._fits[index] = fit
        return fit

    @staticmethod
    def _group_offsets(residual: np.ndarray, codes: np.ndarray, variance: float) -> tuple[np.ndarray, np.ndarray]:
        """Shrunk mean residual of each group and the variance of it, (groups,) each."""
        sizes = np.bincount(codes)
        weight = sizes / (sizes + variance / _GROUP_SD**2)
        return weight * np.bincount(codes, weights=residual) / sizes, _GROUP_SD**2 * (1 - weight)

    def predict(self, group: Group, logs: np.ndarray, fraction: float) -> tuple[float, float] | None:
        """Mean and standard deviation of the final log L0 of a trial seen up to `fraction`.

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
        mean, sd = self._predict([group], logs[None], index)
        return float(mean[0]), float(sd[0])

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
            means, sds = self._predict([record.group for record in batch], logs, index)
            told.update(zip((record.number for record in batch), zip(means.tolist(), sds.tolist(), strict=True), strict=True))
        return told

    def _predict(self, groups: Sequence[Group], logs: np.ndarray, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, (n,) each, of the final log L0 of trials with milestones (n, 2, 6)."""
        fit = self._fit(index)
        features = self._features(logs, index)
        offset = np.array([fit.offsets.get(group, (0.0, _GROUP_SD**2)) for group in groups])
        mean = features[:, 1] + self.target.log_middle - features @ fit.coefficients - offset[:, 0]
        spread = np.einsum("ij,jk,ik->i", features, fit.covariance, features) + fit.variance + offset[:, 1]
        return mean, np.sqrt(spread)
