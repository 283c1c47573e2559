"""Which group trains next, and at which coefficient: a pure function of what may be read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prolu_tune.search.landscape import WORTH_TRYING, Landscape
from prolu_tune.search.reach import MIN_WIDTH
from prolu_tune.search.records import Group, PendingTrial

WORTH_STARTING = 0.3  # chance to fill an open bin under which a trial waits for what is still pending
_SAME_PLACE, _AGAIN = 0.02, 0.7  # log coefficient of a place; what a training that ended there leaves of its chance
_APART = 0.05  # how much a coefficient far from all others is preferred, for what it teaches


@dataclass(frozen=True)
class Proposal:
    """A trial to start.

    Args:
        group: architecture and other factors.
        log_coefficient: natural logarithm of the coefficient.
        chance: probability to fill an open bin that no pending trial is going to fill.
        waived: the trial is not worth its cost before pending ones have ended; it is to be recorded and not trained.
    """

    group: Group
    log_coefficient: float
    chance: float
    waived: bool


def propose(landscape: Landscape, pending: Sequence[PendingTrial], groups: Sequence[Group] | None = None) -> Proposal:
    """The next trial. Groups take turns, those with the fewest pending and ended trials first.

    Where no open bin is left (nobody asked `is_done`) the least useless trial is proposed, waived.
    """
    groups = list(landscape.spans if groups is None else groups)
    in_flight = {group: [trial for trial in pending if trial.group == group] for group in groups}
    order = sorted(
        groups,
        key=lambda group: (len(in_flight[group]), len(landscape.records[group]) + len(in_flight[group]), groups.index(group)),
    )
    best: tuple[float, Group, float] | None = None
    for group in order:
        x, chance = best_of_group(landscape, group, in_flight[group])
        if best is None or chance > best[0]:
            best = chance, group, x
        if chance >= WORTH_STARTING:
            break
    assert best is not None, "a search without groups was refused at the start"
    chance, group, x = best
    low, high = landscape.spans[group]
    return Proposal(group, min(max(x, low), high), chance, waived=bool(pending) and chance < WORTH_STARTING)


def best_of_group(landscape: Landscape, group: Group, pending: Sequence[PendingTrial]) -> tuple[float, float]:
    """The best log coefficient of a group and its chance to fill an open bin (0 where none is left)."""
    low, high = landscape.spans[group]
    still_open = landscape.open_bins(group)
    if not len(still_open):
        return (low + high) / 2, 0.0
    xs, landing = landscape.chances(group)
    landing = landing[:, still_open]
    if landing.sum(axis=1).max() < WORTH_TRYING:
        return probe(landscape, group, still_open, pending)
    same_bin = 0.75 * landscape.target.bin_width / abs(landscape.prior(group).slope)
    wanted = 1 - landscape.covered(group, pending)[still_open]
    chance = (landing @ wanted) * landscape.survival(group, xs)
    for trial in pending:
        # Uncertainty about the curve is common to neighbours: both would land in one bin, wherever it is.
        chance = chance * np.clip(np.abs(xs - trial.log_coefficient) / same_bin, 0, 1)
    taken = np.array([seen.x for seen in landscape.observations(group)] + [trial.log_coefficient for trial in pending])
    distance = np.abs(xs[:, None] - taken[None, :]).min(axis=1) if len(taken) else np.abs(xs - landscape.prior(group).location)
    apart = np.clip(distance / 0.5, 0, 1) if len(taken) else -np.clip(distance / (high - low), 0, 1)
    tried = np.array([seen.x for seen in landscape.observations(group)])
    chance = chance * _AGAIN ** (np.abs(xs[:, None] - tried[None, :]) < _SAME_PLACE).sum(axis=1)
    index = int(np.argmax(chance + _APART * apart))
    return float(xs[index]), float(chance[index])


def probe(landscape: Landscape, group: Group, still_open: np.ndarray, pending: Sequence[PendingTrial]) -> tuple[float, float]:
    """Where to look when no bin is likely anywhere: the middle of the widest bracket, or the end of an open one."""
    low, high = landscape.spans[group]
    brackets = landscape.brackets(group)
    widest = max((brackets[index] for index in still_open), key=lambda bracket: bracket.width)
    tried = [seen.x for seen in landscape.observations(group)]

    def untried(end: float) -> bool:
        return all(abs(x - end) >= MIN_WIDTH for x in tried)

    if widest.left_trial is None and widest.right_trial is not None:
        x = low if untried(low) else (low + widest.right) / 2
    elif widest.right_trial is None and widest.left_trial is not None:
        x = high if untried(high) else (widest.left + high) / 2
    else:
        x = (widest.left + widest.right) / 2
    if any(widest.left <= trial.log_coefficient <= widest.right for trial in pending):
        return x, 0.0
    return x, WORTH_STARTING
