"""Which plots a report has, with their titles and captions, and the rows they draw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from prolu_tune.report import charts
from prolu_tune.report.axes import CHOICES, LINEAR, Scale, in_order, log_ticks, measured, scale_of
from prolu_tune.report.collect import SweepData
from prolu_tune.report.curves import Planes
from prolu_tune.report.findings import BIAS_RANGE
from prolu_tune.report.theme import Look
from prolu_tune.screen.words import number
from prolu_tune.search.coverage import bin_counts

BANDED: tuple[tuple[str, str], ...] = (("l0", "ce_degradation"), ("l1", "mse"), ("sqrt_l1", "mse"))
"""Planes whose intervals are worked out here, for figures; the page works out those of any other."""
DIGITS = 6

Row = dict[str, Any]
Section = Literal["main", "chances", "proxies", "suppression", "response", "courses", "latents"]

RELATIONS: tuple[tuple[str, str, Section, str, str], ...] = (
    ("l0", "l1", "suppression", "L1 against L0", "At equal L0 a higher L1 means activations that are suppressed less."),
    (
        "l0",
        "relative_norm",
        "suppression",
        "Relative norm",
        "Norm of the reconstruction over that of its input; below 1 is suppression.",
    ),
    (
        "l0",
        "magnitude_slope",
        "suppression",
        "Slope of magnitudes",
        "Slope of reconstructed against true magnitude, within latents, where they are active; 1 is consistent in scale. What "
        "else is in the residual flattens it, so it compares architectures at equal L0.",
    ),
    (
        "l1_coefficient",
        "l0",
        "response",
        "L0 against the coefficient",
        "How each architecture answers to its coefficient; lines join the means of seeds.",
    ),
    (
        "l0",
        "frac_negative_bias",
        "latents",
        "Signs of the encoder biases",
        "Share of biases below 0; shaded: 80 to 99 %, the author's remark about ProLU.",
    ),
    ("l0", "frac_dead", "latents", "Dead latents", "Share of latents that never fired on the held-out tokens."),
)
"""x, y, section, title and caption of the plots in which nothing is best, only different."""


@dataclass(frozen=True)
class Plot:
    """A plot of the report."""

    name: str
    """Name of its file, and of its place on the page."""
    section: Section
    title: str
    caption: str
    make: Callable[[Look], Any]
    wide: bool = False
    paper: Callable[[Look], Any] | None = None
    """How it is made for paper, where that differs."""


def plots(data: SweepData, planes: Planes) -> list[Plot]:
    """Returns the plots that this sweep has the numbers for."""
    rows = data.finished
    has = set(measured(rows, (*CHOICES, "frac_dead")))
    found: list[Plot] = []
    if {"l0", "ce_degradation"} <= has:
        found.append(_main(rows))
    if (main := planes.get("l0", "ce_degradation")) is not None and main.replicates:
        l0_ticks = log_ticks(float(main.grid[0]), float(main.grid[-1]))
        found.append(
            Plot(
                "best-by-l0",
                "chances",
                "Which architecture is best at a given L0",
                "Share of the resampled seeds in which each architecture has the lowest degradation.",
                lambda look: charts.chances(look, ticks=l0_ticks),
                wide=True,
            )
        )
    for x, y, words in (
        ("l1", "mse", "What the l1 penalty trades: the optimisation target of every +l1 run."),
        ("sqrt_l1", "mse", "What the sqrt_l1 penalty trades; the plot that the post's author could not draw."),
    ):
        if {x, y} <= has:
            found.append(_frontier_plot(rows, x, y, "proxies", words))
    found += _relations(rows, has)
    if data.target is not None:
        ticks = log_ticks(data.target.low, data.target.high)
        caption = f"Finished trials per bin of log L0, from {number(data.target.low)} to {number(data.target.high)}."
        found.append(Plot("coverage", "response", "Coverage of L0", caption, lambda look: charts.coverage(look, ticks=ticks)))
    found += _courses(data)
    return found


def datasets(data: SweepData, planes: Planes) -> dict[str, list[Row]]:
    """Returns the rows that the plots draw, by the name under which their specifications ask for them."""
    keys = ("run_id", "label", "architecture", "penalty", "group", *CHOICES, "frac_dead")
    return {
        "runs": [_rounded({key: row[key] for key in keys if row.get(key) is not None}) for row in data.finished],
        "bands": [row for x, y in BANDED for row in _bands(planes, x, y)],
        "chances": _chances(planes),
        "bins": _bins(data),
        "courses": [
            _rounded(
                {
                    "run_id": course.run_id,
                    "label": course.label,
                    "architecture": course.architecture,
                    "l1_coefficient": course.l1_coefficient,
                    "step": step,
                    "l0": l0,
                    "lr": lr,
                }
            )
            for course in data.courses
            for step, l0, lr in course.points
            if l0 > 0
        ],
        "resampled": _resampled(data),
    }


def _main(rows: Sequence[Row]) -> Plot:
    x, y = "l0", "ce_degradation"
    x_scale, y_scale = scale_of(rows, x), scale_of(rows, y)
    return Plot(
        "ce_degradation-l0",
        "main",
        "CE degradation against L0",
        "A point is a run, a line the frontier of an architecture, the broad pale line the frontier of all that are shown.",
        lambda look: charts.plane(
            look, charts.X_FIELD, charts.Y_FIELD, extra=("l0", "ce_degradation"), x_scale=x_scale, y_scale=y_scale
        ),
        wide=True,
        paper=lambda look: charts.plane(look, x, y, x_scale=x_scale, y_scale=y_scale),
    )


def _frontier_plot(rows: Sequence[Row], x: str, y: str, section: Section, words: str) -> Plot:
    x_scale, y_scale = scale_of(rows, x), scale_of(rows, y)
    title = f"{'MSE' if y == 'mse' else y} against {'L1' if x == 'l1' else 'sqrt L1'}"
    return Plot(
        f"{y}-{x}",
        section,
        title,
        words,
        lambda look: charts.plane(look, x, y, extra=("l0", "ce_degradation"), x_scale=x_scale, y_scale=y_scale),
    )


def _relations(rows: Sequence[Row], has: set[str]) -> list[Plot]:
    """Returns the plots in which nothing is best, only different."""
    return [
        Plot(f"{y}-{x}", section, title, caption, _relation(rows, x, y))
        for x, y, section, title, caption in RELATIONS
        if {x, y} <= has
    ]


def _relation(rows: Sequence[Row], x: str, y: str) -> Callable[[Look], Any]:
    x_scale, y_scale = scale_of(rows, x), scale_of(rows, y) if y in ("l1", "l0") else LINEAR
    y_scale = Scale("linear", floor=0.0) if y == "frac_dead" else y_scale
    interest = BIAS_RANGE if y == "frac_negative_bias" else None
    return lambda look: charts.relation(look, x, y, x_scale=x_scale, y_scale=y_scale, range_of_interest=interest)


def _courses(data: SweepData) -> list[Plot]:
    values = [l0 for course in data.courses for _, l0, _ in course.points if l0 > 0]
    if not values:
        return []
    last_step = max(course.points[-1][0] for course in data.courses)
    peak_lr = max((lr for course in data.courses for _, _, lr in course.points if lr), default=1.0)
    l0_range = (max(min(values), 1e-2), max(values))
    plots = []
    for name in in_order(course.architecture for course in data.courses):
        runs = sum(course.architecture == name for course in data.courses)
        plots.append(
            Plot(
                f"course-{name.replace('+', '-')}",
                "courses",
                name,
                f"{runs} run{'' if runs == 1 else 's'}, one per setting.",
                lambda look, name=name: charts.course(look, name, last_step=last_step, l0_range=l0_range, peak_lr=peak_lr),
            )
        )
    return plots


def _bands(planes: Planes, x: str, y: str) -> list[Row]:
    plane = planes.get(x, y)
    if plane is None or plane.replicates is None:
        return []
    rows = []
    for name in plane.architectures:
        low, high = plane.interval(name) or (plane.grid, plane.grid)
        for at, below, above in zip(plane.grid, low, high, strict=True):
            if np.isfinite(below) and np.isfinite(above):
                rows.append(_rounded({"plane": f"{x}|{y}", "architecture": name, "at": at, "low": below, "high": above}))
    return rows


def _chances(planes: Planes) -> list[Row]:
    plane = planes.get("l0", "ce_degradation")
    chances = None if plane is None else plane.chances()
    if plane is None or chances is None:
        return []
    return [
        _rounded({"architecture": name, "at": at, "chance": chance})
        for name, values in chances.items()
        for at, chance in zip(plane.grid, values, strict=True)
        if np.isfinite(chance)
    ]


def _bins(data: SweepData) -> list[Row]:
    target = data.target
    if target is None:
        return []
    rows = []
    for name in data.architectures:
        counts = bin_counts([row["l0"] for row in data.finished if row["architecture"] == name], target)
        for index, count in enumerate(counts):
            low, high = target.bounds_of(index)
            rows.append(_rounded({"architecture": name, "low": low, "high": high, "count": int(count)}))
    return rows


def _resampled(data: SweepData) -> list[Row]:
    """Returns per architecture and step the mean number of latents that were replaced."""
    numbers: dict[tuple[str, int], list[int]] = {}
    for course in data.courses:
        for step, latents in course.resampled:
            numbers.setdefault((course.architecture, step), []).append(latents)
    return [
        {"architecture": name, "step": step, "latents": round(sum(found) / len(found), 1)}
        for (name, step), found in numbers.items()
    ]


def _rounded(row: Row) -> Row:
    """Returns the row with numbers of a few digits, as plain Python; a page is mailed."""
    return {
        key: float(f"{value:.{DIGITS}g}") if isinstance(value, float | np.floating) else value for key, value in row.items()
    }


def penalties(architectures: Sequence[str]) -> dict[str, str]:
    """Returns the penalty of each architecture, for the dashes in the legend."""
    return {name: name.partition("+")[2] for name in architectures}
