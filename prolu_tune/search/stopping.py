"""When a running trial is stopped early: when it is going to land where nothing is left to fill."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from prolu_tune.search.courses import decision_index
from prolu_tune.search.coverage import CoverageTarget
from prolu_tune.search.landscape import Landscape
from prolu_tune.search.records import DECISION_FRACTIONS, Course, Group, PendingTrial, TrialRecord, milestones
from prolu_tune.search.response import SURPRISE

STOP_BELOW = 0.3  # chance of filling an open bin under which a running trial is stopped


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


def is_decision(fraction: float) -> bool:
    """Whether a trial that has just reached `fraction` is to be judged."""
    return any(abs(point - fraction) < 1e-9 for point in DECISION_FRACTIONS)


def should_stop(
    history: Sequence[TrialRecord],
    target: CoverageTarget,
    architecture: str | Group,
    l1_coefficient: float,
    course: Course,
    fraction: float,
    *,
    ranges: Mapping[str | Group, tuple[float, float]] | None = None,
    pending: Sequence[PendingTrial] = (),
) -> Decision:
    """Whether a running trial is going to fill no open bin. Depends on nothing but its arguments.

    Args:
        history: the ended trials that may be read.
        target: range and bins.
        architecture: its name, or the whole group where there are other factors.
        l1_coefficient: of the running trial.
        course: (share of training, L0) pairs so far, ascending.
        fraction: share of the training done.
        ranges: range of `l1_coefficient` of each architecture or group; without it, what the history spans.
        pending: trials asked for before this one whose results may not be read.
    """
    group = _as_group(architecture)
    if ranges is None:
        seen: dict[Group, list[float]] = {group: [math.log(l1_coefficient)]}
        for record in history:
            seen.setdefault(record.group, []).append(record.log_coefficient)
        spans = {name: (min(places) - 1.0, max(places) + 1.0) for name, places in seen.items()}
    else:
        spans = {_as_group(name): (math.log(low), math.log(high)) for name, (low, high) in ranges.items()}
    if group not in spans:
        raise ValueError(f"ranges must hold every architecture; {architecture!r} is not among {list(ranges or ())}")
    return judge(Landscape(history, target, spans), group, math.log(l1_coefficient), course, fraction, pending)


def _as_group(architecture: str | Group) -> Group:
    return (architecture,) if isinstance(architecture, str) else tuple(architecture)


def judge(
    landscape: Landscape,
    group: Group,
    log_coefficient: float,
    course: Course,
    fraction: float,
    pending: Sequence[PendingTrial] = (),
) -> Decision:
    """`should_stop` on a landscape that is there already."""
    if fraction >= 1 - 1e-9:
        return Decision(False, float(course[-1][1]) if course else None, "the training is over")
    seen = landscape.courses.predict(group, milestones(course), fraction)
    if seen is None:
        return Decision(False, None, "no decision fraction has been passed")
    mean, sd = _combine(landscape, group, log_coefficient, seen)
    inside = np.diff(ndtr((landscape.target.log_edges - mean) / sd))
    chance = float(((1 - landscape.covered(group, pending)) * inside)[landscape.open_bins(group)].sum())
    predicted = math.exp(mean)
    percent = 100 * DECISION_FRACTIONS[decision_index(fraction) or 0]
    told = f"at {percent:.0f}% it is going to land at L0 {predicted:.3g} (within a factor of {math.exp(sd):.2f})"
    if chance >= STOP_BELOW:
        return Decision(False, predicted, f"{told}: chance of an open bin {chance:.2f}")
    place = "where no bin is open" if landscape.target.bin_of(predicted) is not None else "outside the range"
    return Decision(True, predicted, f"{told}, {place}: chance of an open bin {chance:.2f}")


def _combine(landscape: Landscape, group: Group, x: float, seen: tuple[float, float]) -> tuple[float, float]:
    """Mean and sd of the landing from the course and from the curve; the course alone where they disagree."""
    mean, sd = (float(part[0]) for part in landscape.response(group).landing(np.array([x])))
    gap = math.hypot(seen[1], sd)
    if abs(seen[0] - mean) > SURPRISE * gap:
        return seen[0], 1.3 * seen[1]
    weight = sd**2 / gap**2
    return weight * seen[0] + (1 - weight) * mean, seen[1] * sd / gap
