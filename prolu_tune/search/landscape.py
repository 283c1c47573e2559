"""Everything that a readable set of trials says about all groups: curves, open bins, what cannot be reached."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from prolu_tune.search.courses import CourseModel, decision_index
from prolu_tune.search.coverage import CoverageTarget, bin_counts
from prolu_tune.search.reach import IDLE, Bracket, Unreachable, idle_trials, sure_brackets, verdict
from prolu_tune.search.records import DECISION_FRACTIONS, Course, Group, PendingTrial, TrialRecord, milestones
from prolu_tune.search.response import USUAL_SLOPE, Observation, Response, ResponsePrior, clipped_log

WORTH_TRYING = 0.15  # a bin with a smaller chance than this at its best coefficient is probed or given up
STOP_BELOW = 0.5  # chance of filling an open bin under which a running trial is not worth the whole of a training
STOP_SHARE = 0.8  # of the chance that it was started with; a course that tells nothing stops no trial
STOP_LEAST = 0.15  # unless there was hardly any
CHECK_AFTER, CHECK_EVERY = 6, 4  # stops of a group in a row, after which one trial of so many checks them
CHECK_ABOVE = 0.03  # chance of filling an open bin above which a trial may check
_OTHERS = 24  # groups that a group learns from
_JUMPS = 0.07  # chance that a curve has jumped away where it was not seen to
_DIVERGENCE_PRIOR, _DIVERGENCE_WEIGHT = 0.06, 3.0


Spans = Mapping[Group, tuple[float, float]]
"""Natural logarithms of the smallest and largest coefficient of each group, in a fixed order."""


@dataclass(frozen=True)
class Decision:
    """Whether to stop a trial.

    Args:
        stop: True to stop it now.
        predicted_l0: where it is going to land, or None if nothing is known (no decision fraction passed yet).
        reason: one sentence for logs and for `status`.
    """

    stop: bool
    predicted_l0: float | None
    reason: str


def _rebuilt(records: Sequence[TrialRecord], target: CoverageTarget, spans: Spans, repeats: int) -> "Landscape":
    return Landscape(records, target, spans, repeats=repeats)


class Landscape:
    """What a set of ended trials shows. A pure function of its arguments; parts are computed when asked for.

    Args:
        records: the ended trials that may be read.
        target: range and bins.
        spans: natural logarithms of the smallest and largest coefficient of each group, in a fixed order.
        repeats: how many finished trials every bin should get beyond the first.
    """

    def __init__(
        self,
        records: Sequence[TrialRecord],
        target: CoverageTarget,
        spans: Spans,
        *,
        repeats: int = 0,
    ) -> None:
        self._given = tuple(records), target, dict(spans), repeats
        self.target = target
        self.spans = dict(spans)
        self.repeats = repeats
        self.records: dict[Group, list[TrialRecord]] = {group: [] for group in self.spans}
        for record in records:
            if record.group in self.records and record.fraction > 0:
                self.records[record.group].append(record)
        self.courses = CourseModel(records, target)
        self._observations: dict[Group, list[Observation]] = {}
        self._responses: dict[Group, Response] = {}
        self._summaries: dict[Group, tuple[float, float, float | None] | None] = {}
        self._brackets: dict[Group, list[Bracket]] = {}
        self._chances: dict[Group, tuple[np.ndarray, np.ndarray]] = {}
        self._idles: dict[Group, tuple[int, ...]] = {}
        self._open: dict[Group, np.ndarray] = {}
        self._unreachable: dict[Group, dict[int, Unreachable]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to a trial's process as what it was made of, without what was computed on the way."""
        return _rebuilt, self._given

    # -- curves

    def observations(self, group: Group) -> list[Observation]:
        """Log L0 of the finished trials of a group, and of the stopped ones as their courses foretell it."""
        if group not in self._observations:
            seen = []
            floor, ceiling = clipped_log(0.0, self.target), clipped_log(math.inf, self.target)
            foretold = self.courses.predict_stopped(self.records[group])
            for record in self.records[group]:
                point: tuple[float, float] | None = None
                if record.outcome == "finished" and record.l0 is not None:
                    point = clipped_log(record.l0, self.target), 0.0
                elif record.outcome == "stopped":
                    point = foretold.get(record.number)
                    if point is None and record.predicted_l0 is not None:
                        point = clipped_log(record.predicted_l0, self.target), 0.4
                if point is not None:
                    y = min(max(point[0], floor), ceiling)
                    # Far outside, how far is not the question: that it is outside is sure enough to bound the curve.
                    beyond = max(self.target.log_low - y, y - self.target.log_high, 0.0)
                    sd = min(point[1], 0.25 + 0.4 * beyond) if beyond > 1 else point[1]
                    seen.append(Observation(record.log_coefficient, y, sd, record.number))
            self._observations[group] = seen
        return self._observations[group]

    def _summary(self, group: Group) -> tuple[float, float, float | None] | None:
        """Crossing of the middle of the target relative to the middle of the range, its sd, and the slope if known."""
        if group not in self._summaries:
            self._summaries[group] = self._summarise(group)
        return self._summaries[group]

    def _summarise(self, group: Group) -> tuple[float, float, float | None] | None:
        observations = self.observations(group)
        if not observations:
            return None
        low, high = self.spans[group]
        response = Response(observations, (low, high), self.target, self._blank_prior(group))
        if not response.located:
            weight, location, _ = response.lines
            centre = float(weight @ location)
            spread = math.sqrt(max(float(weight @ (location - centre) ** 2), 0.04))
            return (centre - (low + high) / 2, spread, None) if spread < 0.2 * (high - low) else None
        x, y = response.x[response.near], response.y[response.near]
        moved = x - x.mean()
        slope = (moved @ y + 0.3 * USUAL_SLOPE) / (moved @ moved + 0.3)
        slope = min(max(float(slope), -3.0), -0.5)
        ahead = self.target.log_middle - float(y.mean())
        location = float(x.mean()) + ahead / slope
        return location - (low + high) / 2, 0.1 + 0.25 * abs(ahead), slope if len(x) >= 4 else None

    def _blank_prior(self, group: Group) -> ResponsePrior:
        low, high = self.spans[group]
        return ResponsePrior(location=(low + high) / 2, location_sd=0.3 * (high - low))

    def prior(self, group: Group) -> ResponsePrior:
        """What the other groups tell about a group: shift and slope, with how far groups differ."""
        low, high = self.spans[group]
        blank = self._blank_prior(group)
        # Siblings first: those that share the architecture and differ in other factors.
        nearest = sorted((other for other in self.spans if other != group), key=lambda other: other[0] != group[0])
        others = [(other, self._summary(other)) for other in nearest[:_OTHERS]]
        known = [(other, summary) for other, summary in others if summary is not None]
        if not known:
            return blank
        shifts = np.array([summary[0] for _, summary in known])
        sds = np.array([summary[1] for _, summary in known])
        sure = shifts[sds < 0.8]
        between = (2 * 1.2**2 + float(((sure - sure.mean()) ** 2).sum() if len(sure) else 0)) / (2 + max(len(sure) - 1, 0))
        sibling = np.array([other[0] == group[0] for other, _ in known])
        weight = 1 / (sds**2 + np.where(sibling, 0.3**2, between))
        blank_weight = 1 / blank.location_sd**2
        shift = float(weight @ shifts / (weight.sum() + blank_weight))
        own = 0.3**2 if (sibling & (sds < 0.8)).any() else between
        slopes = [summary[2] for _, summary in known if summary[2] is not None]
        slope = (sum(slopes) + 2 * USUAL_SLOPE) / (len(slopes) + 2)
        return ResponsePrior(
            location=(low + high) / 2 + shift,
            location_sd=min(math.sqrt(own + 1 / (weight.sum() + blank_weight)), blank.location_sd),
            slope=slope,
            slope_sd=0.45 if len(slopes) < 3 else 0.35,
        )

    def response(self, group: Group) -> Response:
        """The curve of a group, with what the other groups lend it."""
        if group not in self._responses:
            self._responses[group] = Response(self.observations(group), self.spans[group], self.target, self.prior(group))
        return self._responses[group]

    # -- bins

    def counts(self, group: Group) -> np.ndarray:
        """Finished trials in each bin."""
        return bin_counts((record.l0 for record in self.records[group] if record.outcome == "finished"), self.target)

    def open_bins(self, group: Group) -> np.ndarray:
        """Indices of the bins that still want a trial: empty and not unreachable, then those short of repeats."""
        if group not in self._open:
            counts = self.counts(group)
            if len(self._idle(group)) >= IDLE:
                wanted = counts > 0  # what `unreachable` would say, without the reasons
            else:
                wanted = ~np.isin(np.arange(self.target.bins), list(self.unreachable(group)))
            level = int(counts[wanted].min()) if wanted.any() else 0
            self._open[group] = np.flatnonzero(wanted & (counts == level) & (level <= self.repeats))
        return self._open[group]

    def unreachable(self, group: Group) -> dict[int, Unreachable]:
        """The empty bins that are given up, with the evidence."""
        if group not in self._unreachable:
            found = {}
            if self.records[group]:
                empty = np.flatnonzero(self.counts(group) == 0)
                best = partial(self._best_chance, group)
                verdicts = (
                    verdict(self.response(group), self.brackets(group)[index], int(index), self.records[group], best)
                    for index in empty
                )
                found = {gone.bin: gone for gone in verdicts if gone is not None}
                idle = self._idle(group)
                if len(idle) >= IDLE:
                    reason = f"the last {len(idle)} trainings filled no bin"
                    found = {int(index): Unreachable(int(index), reason, idle[-IDLE:]) for index in empty} | found
            self._unreachable[group] = found
        return self._unreachable[group]

    def _idle(self, group: Group) -> tuple[int, ...]:
        if group not in self._idles:
            self._idles[group] = idle_trials(self.records[group], self.target, self.repeats)
        return self._idles[group]

    def brackets(self, group: Group) -> list[Bracket]:
        """For each bin the stretch of log coefficient where it can still lie."""
        if group not in self._brackets:
            self._brackets[group] = sure_brackets(self.response(group))
        return self._brackets[group]

    # -- what a trial is worth

    def candidates(self, group: Group) -> np.ndarray:
        """Log coefficients worth comparing: an even cover of the range and where the curve meets each bin."""
        low, high = self.spans[group]
        even = np.linspace(low, high, 65)
        response = self.response(group)
        if not response.located:
            return even
        mean = np.minimum.accumulate(response.landing(even)[0])
        levels = np.concatenate([self.target.log_centers, self.target.log_edges])
        aimed = np.interp(-levels, -mean - 1e-9 * np.arange(len(mean))[::-1], even)
        # A second pass on a fine grid: the even one is as coarse as a bin is wide.
        fine = np.unique(np.clip(np.concatenate([aimed + step for step in (-0.06, 0.0, 0.06)]), low, high))
        fine_mean = np.minimum.accumulate(response.landing(fine)[0])
        aimed = np.interp(-levels, -fine_mean - 1e-9 * np.arange(len(fine))[::-1], fine)
        return np.unique(np.concatenate([even, np.clip(aimed, low, high)]))

    def chances(self, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """The `candidates` (m,) and their probabilities to land in each bin (m, bins)."""
        if group not in self._chances:
            xs = self.candidates(group)
            self._chances[group] = xs, self.response(group).probabilities(xs)
        return self._chances[group]

    def _best_chance(self, group: Group, index: int) -> float:
        return float(self.chances(group)[1][:, index].max())

    def survival(self, group: Group, xs: np.ndarray) -> np.ndarray:
        """Probability that a training at each of `xs` neither diverges nor fails, from what happened nearby."""
        places = np.array([record.log_coefficient for record in self.records[group]])
        died = np.array([record.outcome in ("diverged", "failed") for record in self.records[group]])
        nearness = np.clip(1 - np.abs(xs[:, None] - places[None, :]) / 0.2, 0, 1)
        weight = _DIVERGENCE_WEIGHT + nearness.sum(axis=1)
        lost = _DIVERGENCE_WEIGHT * _DIVERGENCE_PRIOR + nearness @ died
        return 1 - lost / weight

    def covered(self, group: Group, pending: Sequence[PendingTrial]) -> np.ndarray:
        """Probability of each bin to be filled by the pending trials of the group."""
        xs = np.array([trial.log_coefficient for trial in pending if trial.group == group])
        if not len(xs):
            return np.zeros(self.target.bins)
        chance = self.response(group).probabilities(xs) * self.survival(group, xs)[:, None]
        return 1 - np.prod(1 - chance, axis=0)

    # -- stopping early

    def should_stop(
        self,
        group: Group,
        log_coefficient: float,
        course: Course,
        fraction: float,
        pending: Sequence[PendingTrial] = (),
    ) -> Decision:
        """Whether a trial of the group, seen up to `fraction`, is going to fill no open bin."""
        if fraction >= 1 - 1e-9:
            return Decision(False, float(course[-1][1]) if course else None, "the training is over")
        likelihood = self.courses.likelihood(group, milestones(course), fraction)
        if likelihood is None:
            return Decision(False, None, "no decision fraction has been passed")
        wanted = np.zeros(self.target.bins)
        wanted[self.open_bins(group)] = (1 - self.covered(group, pending))[self.open_bins(group)]
        mean, sd, inside = self._landing(group, log_coefficient, likelihood)
        _, _, before = self._landing(group, log_coefficient, np.ones_like(likelihood))
        chance, needed = (
            float(wanted @ inside),
            min(STOP_BELOW * (1 - fraction), max(STOP_SHARE * float(wanted @ before), STOP_LEAST)),
        )
        predicted = math.exp(mean)
        percent = 100 * DECISION_FRACTIONS[decision_index(fraction) or 0]
        told = f"at {percent:.0f}% it is going to land at L0 {predicted:.3g} (within a factor of {math.exp(sd):.2f})"
        if chance >= needed:
            return Decision(False, predicted, f"{told}: chance of an open bin {chance:.2f}")
        if self._checks(group, chance, pending):
            return Decision(False, predicted, f"{told}; trained to its end to check the stops before it")
        place = "where no bin is open" if self.target.bin_of(predicted) is not None else "outside the range"
        return Decision(True, predicted, f"{told}, {place}: chance of an open bin {chance:.2f}")

    def _checks(self, group: Group, chance: float, pending: Sequence[PendingTrial]) -> bool:
        """Whether a trial that is to be stopped is trained to its end instead, since nobody has checked many stops."""
        outcomes = [record.outcome for record in self.records[group] if record.outcome in ("finished", "stopped")]
        stops = next((i for i, outcome in enumerate(reversed(outcomes)) if outcome == "finished"), len(outcomes))
        turn = len(self.records[group]) + sum(trial.group == group for trial in pending)
        return turn % CHECK_EVERY == 0 and stops >= (CHECK_AFTER if chance >= CHECK_ABOVE else IDLE)

    def _landing(self, group: Group, x: float, likelihood: np.ndarray) -> tuple[float, float, np.ndarray]:
        """Mean and sd of the log L0 that a trial lands at, and its chance of each bin, from its course and from the curve."""
        mean, sd = (float(part[0]) for part in self.response(group).landing(np.array([x])))
        ends = self.courses.ends
        mean = min(max(mean, ends[0]), ends[-1])
        expected = (1 - _JUMPS) * np.exp(-(((ends - mean) / sd) ** 2) / 2) / sd / math.sqrt(2 * math.pi)
        share = likelihood * (expected + _JUMPS / (ends[-1] - ends[0]))
        share = share / share.sum()
        centre = float(share @ ends)
        spread = math.sqrt(max(float(share @ (ends - centre) ** 2), 1e-6))
        below = np.interp(self.target.log_edges, ends + (ends[1] - ends[0]) / 2, np.cumsum(share))
        return centre, spread, np.diff(below)
