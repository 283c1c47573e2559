"""Which bins no coefficient leads to: saturation, cliffs, collapse and divergence, with the trials that show it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from prolu_tune.search.coverage import CoverageTarget
from prolu_tune.search.records import TrialRecord
from prolu_tune.search.response import Response

MIN_WIDTH = 0.03  # log coefficient: a bin that less than this leads to is not worth finding
NARROW_BRACKET = 0.15  # log coefficient: in a bracket as narrow as this
RIM_BRACKET = 0.045
SURELY = 1.2  # and this many times too narrow for its bins, they are not worth finding
ENOUGH_TRIES = 5  # trainings in the bracket of a bin that missed it
HALF_HEARTED = 0.35  # best chance of a bin under which that many are enough; otherwise twice as many
IDLE = 14  # trainings of a group in a row that fill nothing, after which its open bins are given up
LOST = ("diverged", "failed")


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

    @property
    def trials(self) -> tuple[int, ...]:
        """The trials at its ends."""
        return tuple(number for number in (self.left_trial, self.right_trial) if number is not None)


@dataclass(frozen=True)
class Unreachable:
    """A bin that no coefficient in the range leads to, with the evidence."""

    bin: int
    reason: str
    trials: tuple[int, ...]


def sure_brackets(response: Response) -> list[Bracket]:
    """For each bin the stretch of log coefficient where it can still lie, from trials that surely landed beside it."""
    level, sd = response.latent()
    above, below = level - 2 * sd, level + 2 * sd
    edges = response.target.log_edges
    brackets = []
    for bottom, top in pairwise(edges):
        left, right = np.flatnonzero(above > top), np.flatnonzero(below < bottom)
        last = int(left[-1]) if len(left) else None
        first = int(right[0]) if len(right) else None
        brackets.append(
            Bracket(
                response.span[0] if last is None else float(response.x[last]),
                response.span[1] if first is None else float(response.x[first]),
                None if last is None else response.observations[last].number,
                None if first is None else response.observations[first].number,
            )
        )
    return brackets


def tight_bracket(response: Response, index: int) -> Bracket | None:
    """The bracket of a bin taking every observation at its word, or None where one side is open."""
    bottom, top = response.target.log_edges[index], response.target.log_edges[index + 1]
    level, width = response.falling, response.target.bin_width
    left, right = np.flatnonzero(level >= top), np.flatnonzero(level < bottom)
    if not len(left) or not len(right):
        return None
    last, first = int(left[-1]), int(right[0])
    numbers = response.observations[last].number, response.observations[first].number
    rim = (level[last] - top < width and response.on_shoulder(last)) or (
        bottom - level[first] < width and response.on_shoulder(first)
    )
    bins = float(level[last] - level[first]) / width
    return Bracket(float(response.x[last]), float(response.x[first]), *numbers, bins, bool(rim))


def verdict(
    response: Response, bracket: Bracket, index: int, records: Sequence[TrialRecord], best_chance: Callable[[int], float]
) -> Unreachable | None:
    """Why an empty bin is given up, or None while it is worth seeking.

    Args:
        response: the curve of the group.
        bracket: the sure bracket of the bin.
        index: the bin.
        records: the ended trials of the group.
        best_chance: gives the highest probability, over all coefficients, of a trial to land in a bin.
    """
    low_l0, high_l0 = response.target.bounds_of(index)
    name = f"L0 {low_l0:.3g} to {high_l0:.3g}"
    left, right = f"{math.exp(bracket.left):.4g}", f"{math.exp(bracket.right):.4g}"
    if bracket.width < MIN_WIDTH:
        if bracket.left_trial is None:
            reason = f"{name}: L0 is lower even at the smallest coefficient ({left})"
        elif bracket.right_trial is None:
            reason = f"{name}: L0 is higher even at the largest coefficient ({right})"
        else:
            reason = f"{name}: L0 jumps over it between the coefficients {left} and {right}"
        return Unreachable(index, reason, bracket.trials)
    tight = tight_bracket(response, index)
    if tight is not None and _hopeless(tight):
        places = f"{math.exp(tight.left):.4g} and {math.exp(tight.right):.4g}"
        return Unreachable(index, f"{name}: L0 falls through {tight.bins:.1f} bins between {places}", tight.trials)
    if tight is not None and tight.width < MIN_WIDTH:
        place = (tight.left + tight.right) / 2
        close = [seen.number for seen in response.observations if abs(seen.x - place) <= 2 * MIN_WIDTH]
        if len(close) >= 3:
            return Unreachable(index, f"{name}: {len(close)} trainings around {math.exp(place):.4g} missed it", tuple(close))
    inside = [record for record in records if bracket.left < record.log_coefficient < bracket.right]
    lost = tuple(record.number for record in inside if record.outcome in LOST)
    if len(lost) >= (3 if response.located else 6) and len(lost) == len(inside):
        return Unreachable(index, f"{name}: every training between {left} and {right} diverged or failed", lost)
    tried = tuple(record.number for record in inside if record.outcome not in LOST)
    # Stopped trials alone are no evidence: where the end of their courses is misjudged, each misjudges it again.
    witnessed = len(tried) >= ENOUGH_TRIES and any(record.outcome == "finished" for record in inside)
    if witnessed and (len(tried) >= 2 * ENOUGH_TRIES or best_chance(index) < HALF_HEARTED):
        return Unreachable(index, f"{name}: {len(tried)} trainings between {left} and {right} missed it", tried)
    return None


def _hopeless(tight: Bracket) -> bool:
    """Whether a tight bracket is too narrow for the bins that L0 falls through in it.

    A bin at its rim may be reached from a shoulder of the cliff, and is sought for longer.
    """
    limit = RIM_BRACKET if tight.rim else NARROW_BRACKET
    return tight.width < limit and tight.bins * MIN_WIDTH > SURELY * tight.width


def idle_trials(records: Sequence[TrialRecord], target: CoverageTarget, repeats: int) -> tuple[int, ...]:
    """The trials since the last one that filled a bin still short of trials; lost ones do not count.

    Empty while all of them were stopped: nobody has seen then that the stops were right.
    """
    counts, idle, witnessed = np.zeros(target.bins, dtype=int), [], False
    for record in records:
        place = target.bin_of(record.l0) if record.outcome == "finished" else None
        if place is not None and counts[place] <= repeats:
            idle.clear()
            witnessed = False
        elif record.outcome not in LOST:
            idle.append(record.number)
            witnessed = witnessed or record.outcome == "finished"
        if place is not None:
            counts[place] += 1
    return tuple(idle) if witnessed else ()
