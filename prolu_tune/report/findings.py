"""The five findings of the ProLU post, held against the runs of one sweep.

A finding is judged part by part. A part holds, does not hold, or cannot be told from these runs; the finding does not
hold if one part does not, and holds if all parts do. The numbers behind every verdict are given with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from prolu_tune.report.curves import ONE_SEED_TOLERANCE, Plane, Planes
from prolu_tune.screen.words import number

Verdict = Literal["holds", "does not hold", "cannot tell from these runs"]
HOLDS: Verdict = "holds"
FAILS: Verdict = "does not hold"
UNKNOWN: Verdict = "cannot tell from these runs"

LIMIT_L0 = 25.0
CONTRADICTION = 0.1
"""Share of the compared range on which the opposite must hold before a claim about all of it is called wrong."""
COMPARABLE = 0.25
"""Share of a claim's range on which there must be something to compare with."""
BIAS_RANGE = (0.80, 0.99)
BIAS_SHARE = 0.9

Row = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One half of a finding."""

    claim: str
    verdict: Verdict
    numbers: str


@dataclass(frozen=True)
class Finding:
    """One finding of the post."""

    number: int
    claim: str
    parts: list[Part] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """Of the whole."""
        verdicts = [part.verdict for part in self.parts]
        if FAILS in verdicts:
            return FAILS
        return HOLDS if verdicts and set(verdicts) == {HOLDS} else UNKNOWN


def check_findings(planes: Planes) -> list[Finding]:
    """Returns the five findings, judged on the finished runs of these planes."""
    rows = planes.rows
    return [
        Finding(1, "Every prolu_ste+l1 run has an L0 below 25.", [_ste_is_sparse(rows)]),
        Finding(
            2,
            "Below L0 25, prolu_ste+l1 is Pareto-best on (L0, CE degradation); above, prolu_relu+sqrt_l1 is.",
            _best_on_either_side(planes),
        ),
        Finding(
            3,
            "On (L1, MSE), relu+l1 is on the frontier everywhere; prolu_ste joins it at the low-sparsity end.",
            _mse_against_l1(planes),
        ),
        Finding(4, "At equal L0, ProLU suppresses activations less than ReLU: its L1 is higher.", _suppression(planes)),
        Finding(5, "80 to 99 % of the encoder biases of ProLU end below 0.", [_negative_biases(rows)]),
    ]


def _ste_is_sparse(rows: Sequence[Row]) -> Part:
    claim = "L0 < 25 in every run of prolu_ste+l1"
    runs = [row for row in rows if row["architecture"] == "prolu_ste+l1" and row["l0"] is not None]
    if not runs:
        return Part(claim, UNKNOWN, "There is no finished run of prolu_ste+l1.")
    below = [row for row in runs if row["l0"] < LIMIT_L0]
    densest = max(runs, key=lambda row: row["l0"])
    coefficients = [row["l1_coefficient"] for row in runs]
    numbers = (
        f"{len(below)} of {_count(len(runs), 'run')} {'is' if len(below) == 1 else 'are'} below 25 (coefficients "
        f"{number(min(coefficients))} to {number(max(coefficients))}); the densest has L0 {number(densest['l0'])} at "
        f"{number(densest['l1_coefficient'])}."
    )
    if len(runs) == 1 and below:
        return Part(claim, UNKNOWN, numbers + " One run is too few for a claim about all.")
    return Part(claim, HOLDS if len(below) == len(runs) else FAILS, numbers)


def _best_on_either_side(planes: Planes) -> list[Part]:
    plane = planes.get("l0", "ce_degradation")
    return [
        _best_where(plane, "prolu_ste+l1", "L0 below 25", high=LIMIT_L0),
        _best_where(plane, "prolu_relu+sqrt_l1", "L0 above 25", low=LIMIT_L0),
    ]


def _best_where(plane: Plane | None, architecture: str, words: str, *, low: float = 0.0, high: float = np.inf) -> Part:
    """Judges that an architecture is best in a stretch of x."""
    claim = f"{architecture} is best at {words}"
    if plane is None or architecture not in plane.estimate:
        return Part(claim, UNKNOWN, f"There is no finished run of {architecture}.")
    region = (plane.grid >= low) & (plane.grid <= high)
    others = [name for name in plane.architectures if name != architecture]
    rivals = np.sum([np.isfinite(plane.estimate[name]) for name in others], axis=0) if others else np.zeros(len(plane.grid))
    advantage = plane.advantage(architecture, others)
    compared = region & np.isfinite(advantage) & (rivals >= min(2, max(1, len(others))))
    if not region.any() or compared.sum() < max(1, COMPARABLE * region.sum()):
        share = 100 * compared.sum() / max(1, region.sum())
        return Part(claim, UNKNOWN, f"Only {share:.0f} % of the range has {architecture} and two others to compare with.")
    better, worse = float((advantage[compared] > 0).mean()), float((advantage[compared] < 0).mean())
    numbers = (
        f"Between L0 {number(plane.grid[compared][0])} and {number(plane.grid[compared][-1])} it is better than every other on "
        f"{100 * better:.0f} %, worse than the best other on {100 * worse:.0f} %, and {_noise(plane)} on "
        f"{100 * (1 - better - worse):.0f} % of the range (in log L0)."
    )
    if worse > CONTRADICTION:
        numbers += f" Where it is worse, the best is {_winners(plane, compared & (advantage < 0), others)}."
        return Part(claim, FAILS, numbers)
    return Part(claim, HOLDS if better >= 0.5 else UNKNOWN, numbers)


def _mse_against_l1(planes: Planes) -> list[Part]:
    everywhere, joins = "relu+l1 is on the frontier everywhere", "prolu_ste is on it at the low-sparsity end"
    plane = planes.get("l1", "mse")
    if plane is None or "relu+l1" not in plane.estimate or len(plane.architectures) < 2:
        missing = "There is no finished run of relu+l1 beside another architecture."
        return [Part(everywhere, UNKNOWN, missing), Part(joins, UNKNOWN, missing)]
    others = [name for name in plane.architectures if name != "relu+l1"]
    advantage = plane.advantage("relu+l1", others)
    compared = np.isfinite(advantage)
    if compared.sum() < COMPARABLE * len(plane.grid):
        return [Part(everywhere, UNKNOWN, "relu+l1 shares too little of its L1 range with others."), _joins(plane, joins)]
    worse = float((advantage[compared] < 0).mean())
    numbers = (
        f"Between L1 {number(plane.grid[compared][0])} and {number(plane.grid[compared][-1])} its MSE is the lowest, or "
        f"{_noise(plane)}, on {100 * (1 - worse):.0f} % of the range (in log L1)."
    )
    if worse > 0:
        numbers += f" Elsewhere {_winners(plane, compared & (advantage < 0), others)} is lower."
    return [Part(everywhere, FAILS if worse > CONTRADICTION else HOLDS, numbers), _joins(plane, joins)]


def _joins(plane: Plane, claim: str) -> Part:
    """Judges that a prolu_ste architecture is as good as the best in the quarter of the L1 range with the largest L1."""
    reach = plane.grid[np.isfinite(plane.estimate["relu+l1"])]
    if len(reach) < 2:
        return Part(claim, UNKNOWN, "relu+l1 has too few runs to span a range of L1.")
    end = (plane.grid >= reach[0] ** 0.25 * reach[-1] ** 0.75) & (plane.grid <= reach[-1])
    where = f"the last quarter of the range of relu+l1 (L1 {number(plane.grid[end][0])} to {number(reach[-1])})"
    shares: dict[str, float] = {}
    for name in plane.architectures:
        if name.startswith("prolu_ste+"):
            advantage = plane.advantage(name, [other for other in plane.architectures if other != name])[end]
            if np.isfinite(advantage).mean() >= 0.5:
                shares[name] = float((advantage[np.isfinite(advantage)] >= 0).mean())
    if not shares:
        return Part(claim, UNKNOWN, f"No prolu_ste architecture reaches {where}.")
    best = max(shares, key=lambda name: shares[name])
    numbers = f"{best} is on the frontier, or {_noise(plane)}, on {100 * shares[best]:.0f} % of {where}."
    return Part(claim, HOLDS if shares[best] >= 0.5 else FAILS, numbers)


def _suppression(planes: Planes) -> list[Part]:
    plane = planes.get("l0", "l1", frontier=False)
    norms = planes.get("l0", "relative_norm", frontier=False)
    parts = []
    for penalty in ("l1", "sqrt_l1"):
        for nonlinearity in ("prolu_relu", "prolu_ste"):
            ours, base = f"{nonlinearity}+{penalty}", f"relu+{penalty}"
            claim = f"{ours} has a higher L1 than {base}"
            missing = [name for name in (ours, base) if plane is None or name not in plane.estimate]
            ratio = None if plane is None or missing else plane.ratio(ours, base)
            if plane is None or ratio is None:
                reason = (
                    f"There is no finished run of {' or '.join(missing)}."
                    if missing
                    else "They share too little of the L0 range."
                )
                parts.append(Part(claim, UNKNOWN, reason))
                continue
            value, low, high = ratio
            numbers = f"Its L1 is {_times(value)} that of {base} at equal L0"
            numbers += f" (95 % interval {low:.2f} to {high:.2f})." if plane.replicates else " (one seed)."
            numbers += _norm_difference(norms, ours, base)
            limit = 0.0 if plane.replicates else float(np.log1p(ONE_SEED_TOLERANCE))
            verdict = HOLDS if np.log(low) > limit else FAILS if np.log(high) < -limit else UNKNOWN
            parts.append(Part(claim, verdict, numbers))
    return parts


def _norm_difference(norms: Plane | None, ours: str, base: str) -> str:
    if norms is None or ours not in norms.estimate or base not in norms.estimate:
        return ""
    difference = norms.estimate[ours] - norms.estimate[base]
    shared = difference[np.isfinite(difference)]
    return f" Its relative norm differs by {shared.mean():+.3f}." if len(shared) else ""


def _negative_biases(rows: Sequence[Row]) -> Part:
    low, high = BIAS_RANGE
    claim = f"{100 * low:.0f} to {100 * high:.0f} % of biases below 0 in ProLU runs"
    shares = [
        row["frac_negative_bias"]
        for row in rows
        if str(row["nonlinearity"]).startswith("prolu") and row["frac_negative_bias"] is not None
    ]
    if len(shares) < 2:
        return Part(claim, UNKNOWN, f"{_count(len(shares), 'ProLU run')} measured it; two are needed.")
    # Rounded to whole per cent, as the author gave them.
    inside = [share for share in shares if low <= round(share, 2) <= high]
    numbers = (
        f"{len(inside)} of {_count(len(shares), 'ProLU run')} {'lies' if len(inside) == 1 else 'lie'} there; "
        f"lowest {100 * min(shares):.1f} %, median {100 * float(np.median(shares)):.1f} %, highest {100 * max(shares):.1f} %."
    )
    return Part(claim, HOLDS if len(inside) >= BIAS_SHARE * len(shares) else FAILS, numbers)


def _winners(plane: Plane, where: np.ndarray, others: Sequence[str]) -> str:
    """Returns which others are lowest there, those that win most first."""
    stack = np.stack([np.where(np.isnan(plane.estimate[name]), np.inf, plane.estimate[name]) for name in others])[:, where]
    wins = np.bincount(stack.argmin(axis=0), minlength=len(others))
    order = sorted(range(len(others)), key=lambda i: -wins[i])
    return " or ".join(others[i] for i in order[:2] if wins[i] >= 0.2 * wins.sum())


def _noise(plane: Plane) -> str:
    return "within noise" if plane.replicates else f"within {100 * ONE_SEED_TOLERANCE:.0f} %"


def _times(value: float) -> str:
    return f"{value:.2f} times"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
