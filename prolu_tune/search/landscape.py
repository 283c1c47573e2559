"""Everything that a readable set of trials says about all groups: curves, open bins, what cannot be reached."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from prolu_tune.search.courses import CourseModel, decision_index
from prolu_tune.search.coverage import CoverageTarget, bin_counts
from prolu_tune.search.records import DECISION_FRACTIONS, Course, Group, PendingTrial, TrialRecord, milestones
from prolu_tune.search.response import SURPRISE, USUAL_SLOPE, Observation, Response, ResponsePrior, clipped_log

MIN_WIDTH = 0.03  # log coefficient: a bin that less than this leads to is not worth finding
NARROW_BRACKET = 0.15  # log coefficient: in a bracket as narrow as this
RIM_BRACKET = 0.045
SURELY = 1.2  # and this many times too narrow for its bins, they are not worth finding
WORTH_TRYING = 0.15  # a bin with a smaller chance than this at its best coefficient is probed or given up
ENOUGH_TRIES = 5  # trainings in the bracket of a bin that missed it
IDLE = 14  # trainings of a group in a row that fill nothing, after which its open bins are given up
HALF_HEARTED = 0.35  # best chance of a bin under which that many are enough; otherwise twice as many
STOP_BELOW = 0.3  # chance of filling an open bin under which a running trial is stopped
_DIVERGENCE_PRIOR, _DIVERGENCE_WEIGHT = 0.06, 3.0


Spans = Mapping[Group, tuple[float, float]]
"""Natural logarithms of the smallest and largest coefficient of each group, in a fixed order."""


@dataclass(frozen=True)
class Bracket:
    """Where on the log coefficient a bin can still lie, and which trials say so (None: the end of the range).

    `bins` is by how many bins L0 falls from end to end; `rim` says that the bin is the first or last of them.
    """

    left: float
    right: float
    left_trial: int | None
    right_trial: int | None
    bins: float = 1.0
    rim: bool = False

    @property
    def width(self) -> float:
        return self.right - self.left


@dataclass(frozen=True)
class Unreachable:
    """A bin that no coefficient in the range leads to, with the evidence."""

    bin: int
    reason: str
    trials: tuple[int, ...]


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
            for record in self.records[group]:
                point: tuple[float, float] | None = None
                if record.outcome == "finished" and record.l0 is not None:
                    point = clipped_log(record.l0, self.target), 0.0
                elif record.outcome == "stopped":
                    point = self.courses.predict(group, record.milestones, record.fraction)
                    if point is None and record.predicted_l0 is not None:
                        point = clipped_log(record.predicted_l0, self.target), 0.4
                if point is not None:
                    y = min(max(point[0], clipped_log(0.0, self.target)), clipped_log(math.inf, self.target))
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
        others = [(other, self._summary(other)) for other in self.spans if other != group]
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
            counts, gone = self.counts(group), self.unreachable(group)
            wanted = np.array([index not in gone for index in range(self.target.bins)], dtype=bool)
            level = int(counts[wanted].min()) if wanted.any() else 0
            self._open[group] = np.flatnonzero(wanted & (counts == level) & (level <= self.repeats))
        return self._open[group]

    def brackets(self, group: Group) -> list[Bracket]:
        """For each bin the stretch of log coefficient where it can still lie, from trials that surely landed beside it."""
        if group not in self._brackets:
            low, high = self.spans[group]
            response = self.response(group)
            level, sd = response.latent()
            above, below = level - 2 * sd, level + 2 * sd
            brackets = []
            for bottom, top in zip(self.target.log_edges, self.target.log_edges[1:], strict=False):
                left, right = np.flatnonzero(above > top), np.flatnonzero(below < bottom)
                last = int(left[-1]) if len(left) else None
                first = int(right[0]) if len(right) else None
                brackets.append(
                    Bracket(
                        low if last is None else float(response.x[last]),
                        high if first is None else float(response.x[first]),
                        None if last is None else response.observations[last].number,
                        None if first is None else response.observations[first].number,
                    )
                )
            self._brackets[group] = brackets
        return self._brackets[group]

    def unreachable(self, group: Group) -> dict[int, Unreachable]:
        """The empty bins that are given up, with the evidence."""
        if group not in self._unreachable:
            counts = self.counts(group)
            found = {}
            if self.records[group]:
                for index, bracket in enumerate(self.brackets(group)):
                    verdict = None if counts[index] else self._verdict(group, index, bracket)
                    if verdict is not None:
                        found[index] = verdict
                idle = self._idle(group)
                if len(idle) >= IDLE:
                    reason = f"the last {len(idle)} trainings filled no bin"
                    for index in np.flatnonzero(counts == 0):
                        found.setdefault(int(index), Unreachable(int(index), reason, idle[-IDLE:]))
            self._unreachable[group] = found
        return self._unreachable[group]

    def _idle(self, group: Group) -> tuple[int, ...]:
        """The trials since the last one that filled a bin still short of trials; lost ones do not count."""
        counts, idle = np.zeros(self.target.bins, dtype=int), []
        for record in self.records[group]:
            place = self.target.bin_of(record.l0) if record.outcome == "finished" else None
            if place is not None and counts[place] <= self.repeats:
                idle.clear()
            elif record.outcome not in ("diverged", "failed"):
                idle.append(record.number)
            if place is not None:
                counts[place] += 1
        return tuple(idle)

    def _verdict(self, group: Group, index: int, bracket: Bracket) -> Unreachable | None:
        low_l0, high_l0 = self.target.bounds_of(index)
        name = f"L0 {low_l0:.3g} to {high_l0:.3g}"
        trials = tuple(number for number in (bracket.left_trial, bracket.right_trial) if number is not None)
        if bracket.width < MIN_WIDTH:
            if bracket.left_trial is None:
                reason = f"{name}: L0 is lower even at the smallest coefficient ({math.exp(bracket.left):.3g})"
            elif bracket.right_trial is None:
                reason = f"{name}: L0 is higher even at the largest coefficient ({math.exp(bracket.right):.3g})"
            else:
                places = f"{math.exp(bracket.left):.4g} and {math.exp(bracket.right):.4g}"
                reason = f"{name}: L0 jumps over it between the coefficients {places}"
            return Unreachable(index, reason, trials)
        tight = self._tight_bracket(group, index)
        if tight is not None and self._hopeless(tight):
            places = f"{math.exp(tight.left):.4g} and {math.exp(tight.right):.4g}"
            numbers = tuple(number for number in (tight.left_trial, tight.right_trial) if number is not None)
            return Unreachable(index, f"{name}: L0 falls through {tight.bins:.1f} bins between {places}", numbers)
        if tight is not None and tight.width < MIN_WIDTH:
            place = (tight.left + tight.right) / 2
            close = [seen.number for seen in self.observations(group) if abs(seen.x - place) <= 0.06]
            if len(close) >= 3:
                return Unreachable(
                    index, f"{name}: {len(close)} trainings around {math.exp(place):.4g} missed it", tuple(close)
                )
        strictly = [record for record in self.records[group] if bracket.left < record.log_coefficient < bracket.right]
        lost = [record.number for record in strictly if record.outcome in ("diverged", "failed")]
        limit = 3 if self.response(group).located else 6
        if len(lost) >= limit and len(lost) == len(strictly):
            return Unreachable(index, f"{name}: every training between its neighbours diverged or failed", tuple(lost))
        tried = tuple(record.number for record in strictly if record.outcome not in ("diverged", "failed"))
        enough = ENOUGH_TRIES if self.best_chance(group, index) < HALF_HEARTED else 2 * ENOUGH_TRIES
        if len(tried) >= enough:
            return Unreachable(index, f"{name}: {len(tried)} trainings around its place missed it", tried)
        return None

    def _hopeless(self, tight: Bracket) -> bool:
        """Whether a tight bracket is too narrow for the bins that L0 falls through in it.

        A bin at its rim may be reached from a shoulder of the cliff, and is sought for longer.
        """
        limit = RIM_BRACKET if tight.rim else NARROW_BRACKET
        return tight.width < limit and tight.bins * MIN_WIDTH > SURELY * tight.width

    def _tight_bracket(self, group: Group, index: int) -> Bracket | None:
        """The bracket of a bin taking every observation at its word, or None where one side is open."""
        response = self.response(group)
        bottom, top = self.target.log_edges[index], self.target.log_edges[index + 1]
        left, right = np.flatnonzero(response.falling >= top), np.flatnonzero(response.falling < bottom)
        if not len(left) or not len(right):
            return None
        last, first = int(left[-1]), int(right[0])
        numbers = response.observations[last].number, response.observations[first].number
        level, width = response.falling, self.target.bin_width
        rim = (level[last] - top < width and response.on_shoulder(last)) or (
            bottom - level[first] < width and response.on_shoulder(first)
        )
        bins = float(level[last] - level[first]) / width
        return Bracket(float(response.x[last]), float(response.x[first]), *numbers, bins, bool(rim))

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

    def best_chance(self, group: Group, index: int) -> float:
        """The highest probability, over all coefficients, of a trial to land in the bin."""
        return float(self.chances(group)[1][:, index].max())

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
        seen = self.courses.predict(group, milestones(course), fraction)
        if seen is None:
            return Decision(False, None, "no decision fraction has been passed")
        mean, sd = self._combine(group, log_coefficient, seen)
        inside = np.diff(ndtr((self.target.log_edges - mean) / sd))
        chance = float(((1 - self.covered(group, pending)) * inside)[self.open_bins(group)].sum())
        predicted = math.exp(mean)
        percent = 100 * DECISION_FRACTIONS[decision_index(fraction) or 0]
        told = f"at {percent:.0f}% it is going to land at L0 {predicted:.3g} (within a factor of {math.exp(sd):.2f})"
        if chance >= STOP_BELOW:
            return Decision(False, predicted, f"{told}: chance of an open bin {chance:.2f}")
        place = "where no bin is open" if self.target.bin_of(predicted) is not None else "outside the range"
        return Decision(True, predicted, f"{told}, {place}: chance of an open bin {chance:.2f}")

    def _combine(self, group: Group, x: float, seen: tuple[float, float]) -> tuple[float, float]:
        """Mean and sd of the landing from the course and from the curve; the course alone where they disagree."""
        mean, sd = (float(part[0]) for part in self.response(group).landing(np.array([x])))
        gap = math.hypot(seen[1], sd)
        if abs(seen[0] - mean) > SURPRISE * gap:
            return seen[0], 1.3 * seen[1]
        weight = sd**2 / gap**2
        return weight * seen[0] + (1 - weight) * mean, seen[1] * sd / gap
