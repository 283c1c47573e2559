"""When a running trial is stopped early: when it is going to land where nothing is left to fill."""

import math
from collections.abc import Mapping, Sequence

from prolu_tune.search.coverage import CoverageTarget
from prolu_tune.search.landscape import Decision, Landscape
from prolu_tune.search.records import DECISION_FRACTIONS, Course, Group, PendingTrial, TrialRecord

__all__ = ["Decision", "is_decision", "should_stop"]


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
    return Landscape(history, target, spans).should_stop(group, math.log(l1_coefficient), course, fraction, pending)


def _as_group(architecture: str | Group) -> Group:
    return (architecture,) if isinstance(architecture, str) else tuple(architecture)
