"""How every plot looks, on the page and on paper: one configuration, one scale of colours and shapes, one tooltip."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from prolu_tune.report.axes import AXES, Scale, color, shape

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK = "currentColor"
"""Text and lines take the page's colour, so that a switch between light and dark needs no redrawing."""
HEIGHT = 300
SMALL_HEIGHT = 220

CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None, "continuousWidth": 480, "continuousHeight": HEIGHT},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "domainColor": INK,
        "tickColor": INK,
        "gridColor": INK,
        "gridOpacity": 0.1,
        "domainOpacity": 0.5,
        "tickOpacity": 0.5,
        "labelFontSize": 11.5,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelFlush": True,
        "labelOverlap": "greedy",
        "tickCount": 6,
    },
    "title": {"color": INK, "fontSize": 13, "fontWeight": 600, "anchor": "start"},
    "legend": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12, "symbolSize": 70},
    "text": {"color": INK},
    "rule": {"color": INK},
}


@dataclass(frozen=True)
class Look:
    """What a chart has to know about where it is shown and what it shows."""

    architectures: Sequence[str]
    paper: bool = False
    """On paper: a legend, no parameter, a fixed width."""
    seeds: bool = False
    """Several seeds per setting: bands."""


def color_of(look: Look) -> alt.Color:
    """Returns the colour channel; architectures have their colour whatever else is on the plot."""
    return alt.Color(
        field="architecture",
        type="nominal",
        scale=alt.Scale(domain=list(look.architectures), range=[color(name) for name in look.architectures]),
        legend=alt.Legend(title=None, orient="bottom", columns=3) if look.paper else None,
    )


def shape_of(look: Look) -> alt.Shape:
    """Returns the shape channel, so that colour is never alone."""
    return alt.Shape(
        field="architecture",
        type="nominal",
        scale=alt.Scale(domain=list(look.architectures), range=[shape(name) for name in look.architectures]),
        legend=alt.Legend(title=None, orient="bottom", columns=3) if look.paper else None,
    )


def dash_of() -> alt.StrokeDash:
    """Returns solid lines for l1 and dashed ones for sqrt_l1, so that lines can be told apart in print."""
    scale = alt.Scale(domain=["l1", "sqrt_l1"], range=[[1, 0], [5, 3]])
    return alt.StrokeDash(field="penalty", type="nominal", scale=scale, legend=None)


def x_axis(key: str, scale: Scale, **more: Any) -> alt.X:
    """Returns an x channel with the quantity's title and format."""
    axis = AXES[key]
    return alt.X(field=key, type="quantitative", title=axis.title, scale=_scale(scale), axis=_ticks(scale, axis.form), **more)


def y_axis(key: str, scale: Scale, **more: Any) -> alt.Y:
    """Returns a y channel with the quantity's title and format."""
    axis = AXES[key]
    return alt.Y(field=key, type="quantitative", title=axis.title, scale=_scale(scale), axis=_ticks(scale, axis.form), **more)


def tooltip(*keys: str) -> list[alt.Tooltip]:
    """Returns what hovering a run shows: its name first, then these quantities, then its id."""
    named = [alt.Tooltip(field="label", type="nominal", title="run")]
    values = [alt.Tooltip(field=key, type="quantitative", title=AXES[key].short, format=AXES[key].form) for key in keys]
    return [*named, *values, alt.Tooltip(field="run_id", type="nominal", title="run id")]


def _scale(scale: Scale) -> alt.Scale:
    if scale.kind == "log":
        return alt.Scale(type="log", nice=False, padding=12)
    if scale.floor is not None:
        return alt.Scale(type="linear", domainMin=scale.floor)
    return alt.Scale(type="linear", zero=False, padding=12)


def _ticks(scale: Scale, form: str) -> alt.Axis:
    return alt.Axis(format=form, values=list(scale.ticks)) if scale.ticks else alt.Axis(format=form)
