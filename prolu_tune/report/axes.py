"""What can stand on an axis, and how an architecture looks: names, formats, scales, colours, shapes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prolu_tune.config.names import place
from prolu_tune.results.figure import COLORS

SHAPES: tuple[str, ...] = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
"""Vega's words for the markers of `sweep.figure`, in the same order."""
LOG_SPAN = 4.0
"""Values that span at least this factor are drawn on a log axis."""


@dataclass(frozen=True)
class Axis:
    """A quantity of a run that a plot can show."""

    key: str
    title: str
    short: str
    form: str
    """A d3 format for ticks and tooltips."""
    larger_is_better: bool = False


@dataclass(frozen=True)
class Scale:
    """How values are laid out along an axis."""

    kind: Literal["log", "linear"]
    ticks: tuple[float, ...] = ()
    """Values to label; none: Vega chooses."""
    floor: float | None = None
    """Where the axis starts; None: a little below the smallest value."""


LINEAR = Scale("linear")

AXES: dict[str, Axis] = {
    axis.key: axis
    for axis in (
        Axis("l0", "L0 (active latents per token)", "L0", ".3~g"),
        Axis("ce_degradation", "CE degradation (nats per token)", "CE degradation", ".3~g"),
        Axis("ce_degradation_bos_kept", "CE degradation, BOS kept (nats per token)", "CE degradation, BOS kept", ".3~g"),
        Axis("ce_loss_score", "CE loss score", "CE score", ".3~g", larger_is_better=True),
        Axis("l1", "L1 (sum of activations)", "L1", ".3~g"),
        Axis("sqrt_l1", "sqrt L1 (sum of roots of activations)", "sqrt L1", ".3~g"),
        Axis("mse", "MSE (per dimension)", "MSE", ".3~g"),
        Axis("fvu", "FVU (variance unexplained)", "FVU", ".3~g"),
        Axis("relative_norm", "relative norm", "relative norm", ".3~f", larger_is_better=True),
        Axis("magnitude_slope", "slope of magnitudes", "slope", ".3~f", larger_is_better=True),
        Axis("frac_alive", "latents alive", "alive", ".1~%", larger_is_better=True),
        Axis("frac_dead", "dead latents", "dead", ".1~%"),
        Axis("frac_negative_bias", "encoder biases below 0", "biases < 0", ".1~%"),
        Axis("l1_coefficient", "sparsity coefficient", "coefficient", ".3~g"),
        Axis("wall_s", "training time (s)", "time", ".3~s"),
    )
}
CHOICES: tuple[str, ...] = (
    "l0", "ce_degradation", "ce_degradation_bos_kept", "ce_loss_score", "l1", "sqrt_l1", "mse", "fvu", "relative_norm",
    "magnitude_slope", "frac_alive", "frac_negative_bias", "l1_coefficient", "wall_s",
)  # fmt: skip
"""What either axis of the main plot may show, in the order of the menus."""


def color(architecture: str) -> str:
    """Returns the colour of an architecture, the same in every sweep, plot and notebook."""
    return COLORS[place(architecture) % len(COLORS)]


def shape(architecture: str) -> str:
    """Returns the marker of an architecture as Vega names it."""
    return SHAPES[place(architecture) % len(SHAPES)]


def in_order(architectures: Iterable[str]) -> list[str]:
    """Returns architectures without repeats in the order of every list and legend."""
    return sorted(set(architectures), key=lambda name: (place(name), name))


def measured(rows: Iterable[Mapping[str, Any]], keys: Iterable[str] = CHOICES) -> list[str]:
    """Returns those axes for which at least two rows have different values."""
    table = list(rows)
    return [key for key in keys if len({row.get(key) for row in table} - {None}) > 1]


def scale_of(rows: Iterable[Mapping[str, Any]], key: str) -> Scale:
    """Returns a log scale where all values are above 0 and span a factor of `LOG_SPAN`, else a linear one."""
    values = [row[key] for row in rows if row.get(key) is not None]
    if not values or min(values) <= 0 or max(values) / min(values) < LOG_SPAN:
        return LINEAR
    return Scale("log", log_ticks(min(values), max(values)))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Returns the values to label on a log axis; Vega's own choice labels 20, 30 and 40 and leaves 50 to 90 out.

    `logTicks` in the page's script is the same.
    """
    span = high / low
    digits = (1, 1.5, 2, 3, 5, 7) if span < 15 else (1, 2, 5) if span < 500 else (1,)
    values = (float(f"{digit}e{power}") for power in range(-9, 10) for digit in digits)
    return tuple(value for value in values if low * 0.95 <= value <= high * 1.05)
