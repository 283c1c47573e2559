"""The plane of two metrics as a matplotlib figure, for notebooks."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prolu_tune.config.names import place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS: tuple[str, ...] = ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#D55E00", "#CC79A7")
"""Okabe and Ito's colours, which colour-blind people can tell apart."""
MARKERS: tuple[str, ...] = ("o", "s", "^", "D", "v", "P")
NAMES: dict[str, str] = {"l0": "L0", "ce_degradation": "CE degradation (nats)", "mse": "MSE", "l1": "L1", "sqrt_l1": "sqrt L1"}


def draw_plane(
    points: Mapping[str, tuple[float, float]],
    architectures: Mapping[str, str],
    frontiers: Mapping[str, Sequence[str]],
    *,
    x: str,
    y: str,
    title: str,
    ax: "Axes | None" = None,
) -> "Axes":
    """Returns axes with every run as a point, and each architecture's frontier as a line in the same colour.

    Args:
        points: (x, y) of each run id.
        architectures: Architecture of each run id.
        frontiers: For each architecture its run ids along the frontier, by ascending x.
        x: Name of the x axis; logarithmic where every x is above 0.
        y: Name of the y axis.
        title: Title of the plot.
        ax: Where to draw; None: a new figure.
    """
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(layout="constrained")
    for name in sorted(set(architectures.values()), key=place):
        color, marker = COLORS[place(name) % len(COLORS)], MARKERS[place(name) % len(MARKERS)]
        runs = [points[run] for run, architecture in architectures.items() if architecture == name]
        ax.plot([p[0] for p in runs], [p[1] for p in runs], marker, color=color, alpha=0.5, markersize=5)
        line = [points[run] for run in frontiers.get(name, ())]
        ax.plot([p[0] for p in line], [p[1] for p in line], marker=marker, color=color, label=name, markersize=6)
    if points and all(value > 0 for value, _ in points.values()):
        ax.set_xscale("log")
    ax.set(xlabel=NAMES.get(x, x), ylabel=NAMES.get(y, y), title=title)
    if points:
        ax.legend()
    return ax
