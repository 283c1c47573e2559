"""When a running trial is stopped early: how L0 at 5, 10, 20, 40 ... % foretells the end, and what that is worth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prolu_tune.search.coverage import CoverageTarget
from prolu_tune.search.records import Group, TrialRecord
from prolu_tune.search.response import clipped_log

DECISION_FRACTIONS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
# Before any trial has finished: by how much log L0 still falls after each fraction (mean, standard deviation) and
# how far that may depend on L0 itself. Set by 30 short real trainings (falls of 0.2-0.9 after 40 %, 1-3 after 10 %)
# and by the knowledge that long ones settle much earlier.
_STILL_FALLS = {0.05: (1.2, 1.3), 0.1: (0.9, 0.9), 0.2: (0.55, 0.55), 0.4: (0.22, 0.3), 0.6: (0.1, 0.15), 0.8: (0.03, 0.08)}
_SLOPE_SD = {0.05: 1.0, 0.1: 0.7, 0.2: 0.4, 0.4: 0.2, 0.6: 0.1, 0.8: 0.05}
_SCALE = {0.05: 0.4, 0.1: 0.3, 0.2: 0.2, 0.4: 0.1, 0.6: 0.06, 0.8: 0.04}
_GROUP_SD = 0.15


@dataclass(frozen=True)
class Decision:
    """Whether to stop a trial.

    Args:
        stop: True to stop it now.
        predicted_l0: where it is going to land, or None if nothing is known (no course yet).
        reason: one sentence for logs and for `status`.
    """

    stop: bool
    predicted_l0: float | None
    reason: str


def log_l0_at(course: Sequence[tuple[float, float]], fraction: float, target: CoverageTarget) -> float | None:
    """Log L0 of a course at `fraction`, interpolated; None outside the part that was seen."""
    if not course or course[-1][0] < fraction - 1e-9 or course[0][0] > fraction + 1e-9:
        return None
    shares = [share for share, _ in course]
    return float(np.interp(fraction, shares, [clipped_log(l0, target) for _, l0 in course]))


def decision_fraction(fraction: float) -> float | None:
    """The latest point of decision that a trial at `fraction` has passed, or None before the first."""
    passed = [point for point in DECISION_FRACTIONS if point <= fraction + 1e-9]
    return passed[-1] if passed else None


class CourseModel:
    """Predicts the end of a course from its beginning, learned from the finished trials of all groups.

    At each point of decision a Bayesian line maps (log L0 there, how fast it is moving) to how far log L0 still
    falls; each group has its own offset, shrunk towards the common line. With nothing finished the prior is wide.
    """

    def __init__(self, records: Sequence[TrialRecord], target: CoverageTarget) -> None:
        self.target = target
        self._finished = [record for record in records if record.outcome == "finished" and record.course][-400:]
        self._fits: dict[float, tuple[np.ndarray, np.ndarray, float, dict[Group, tuple[float, float]]]] = {}

    def _features(self, course: Sequence[tuple[float, float]], point: float) -> np.ndarray | None:
        """(1, log L0 about the middle, movement since half the fraction): (3,)."""
        now = log_l0_at(course, point, self.target)
        if now is None:
            return None
        before = log_l0_at(course, point / 2, self.target)
        return np.array([1.0, now - self.target.log_middle, 0.0 if before is None else now - before])

    def _fit(self, point: float) -> tuple[np.ndarray, np.ndarray, float, dict[Group, tuple[float, float]]]:
        """Coefficients (3,), their covariance (3, 3), residual variance, and offset and its variance by group."""
        if point in self._fits:
            return self._fits[point]
        mean, spread = _STILL_FALLS[point]
        prior_mean = np.array([mean, 0.0, 0.0])
        precision = np.diag(1 / np.array([spread, _SLOPE_SD[point], 0.5]) ** 2)
        rows, falls, groups = [], [], []
        for record in self._finished:
            features = self._features(record.course, point)
            if features is not None and record.l0 is not None:
                rows.append(features)
                falls.append(features[1] + self.target.log_middle - clipped_log(record.l0, self.target))
                groups.append(record.group)
        variance, offsets = _SCALE[point] ** 2 + _GROUP_SD**2, {}
        coefficients, covariance = prior_mean, np.linalg.inv(precision)
        if rows:
            design, target = np.array(rows), np.array(falls)
            for _ in range(3):
                covariance = np.linalg.inv(precision + design.T @ design / variance)
                coefficients = covariance @ (precision @ prior_mean + design.T @ target / variance)
                leverage = np.einsum("ij,jk,ik->i", design, covariance, design) / variance
                residual = (target - design @ coefficients) / np.maximum(1 - leverage, 0.2)
                offsets, within = self._group_offsets(residual, groups, variance)
                variance = (2 * _SCALE[point] ** 2 + float((within**2).sum())) / (2 + len(rows)) + 1e-6
        self._fits[point] = coefficients, covariance, variance, offsets
        return self._fits[point]

    @staticmethod
    def _group_offsets(
        residual: np.ndarray, groups: Sequence[Group], variance: float
    ) -> tuple[dict[Group, tuple[float, float]], np.ndarray]:
        """Shrunk mean residual of each group with its variance, and the residuals without it."""
        offsets, within = {}, residual.copy()
        for group in dict.fromkeys(groups):
            members = np.array([other == group for other in groups])
            weight = members.sum() / (members.sum() + variance / _GROUP_SD**2)
            offsets[group] = (float(weight * residual[members].mean()), _GROUP_SD**2 * (1 - weight))
            within[members] = residual[members] - offsets[group][0]
        return offsets, within

    def predict(self, group: Group, course: Sequence[tuple[float, float]], fraction: float) -> tuple[float, float] | None:
        """Mean and standard deviation of the final log L0 of a trial whose course was seen up to `fraction`."""
        point = decision_fraction(fraction)
        features = None if point is None else self._features(course, point)
        if point is None or features is None:
            return None
        coefficients, covariance, variance, offsets = self._fit(point)
        offset, offset_variance = offsets.get(group, (0.0, _GROUP_SD**2))
        now = features[1] + self.target.log_middle
        mean = now - float(features @ coefficients) - offset
        spread = math.sqrt(float(features @ covariance @ features) + variance + offset_variance)
        return mean, spread
