"""The plots of the report, as Vega-Lite specifications that hold no data: page and figures put that in.

Datasets: `runs` (finished trials), `bands` (intervals of curves), `bins`, `courses`, `resampled`. On the page the parameter
`hidden` holds the architectures that the reader has switched off; a chart for paper has a legend instead.
"""

import json
from collections.abc import Sequence
from typing import Any

import altair as alt

from prolu_tune.report.axes import AXES, LINEAR, Axis, Scale, log_ticks
from prolu_tune.report.theme import (
    CONFIG,
    HEIGHT,
    INK,
    SMALL_HEIGHT,
    Look,
    color_of,
    dash_of,
    shape_of,
    tooltip,
    x_axis,
    y_axis,
)

X_FIELD, Y_FIELD = "x_field__", "y_field__"
X_TITLE, Y_TITLE = "x_title__", "y_title__"
X_SHORT, Y_SHORT = "x_short__", "y_short__"
X_SIGN, Y_SIGN = "x_sign__", "y_sign__"
"""Stand in the specification of the plot whose axes the reader chooses; the page replaces them."""

for _field, _title, _short in ((X_FIELD, X_TITLE, X_SHORT), (Y_FIELD, Y_TITLE, Y_SHORT)):
    AXES[_field] = Axis(_field, _title, _short, ".3~g")


def plane(
    look: Look, x: str, y: str, *, x_scale: Scale = LINEAR, y_scale: Scale = LINEAR, extra: Sequence[str] = ()
) -> alt.LayerChart:
    """Returns runs as points, each architecture's frontier as a line, the frontier of all as a broad pale line.

    Args:
        look: Where it is shown.
        x: Axis, or `X_FIELD`.
        y: Axis, or `Y_FIELD`.
        x_scale: Of x.
        y_scale: Of y.
        extra: Further quantities for the tooltip.
    """
    chosen = x == X_FIELD
    signs = (X_SIGN, Y_SIGN) if chosen else tuple("-1" if AXES[key].larger_is_better else "1" for key in (x, y))
    usable = _shown(look, "runs").transform_filter(f"isValid(datum['{x}']) && isValid(datum['{y}'])")
    signed = usable.transform_calculate(fx=f"{signs[0]} * datum['{x}']", fy=f"{signs[1]} * datum['{y}']")
    xs, ys = x_axis(x, x_scale), y_axis(y, y_scale)
    order = alt.Order(field="fx", type="quantitative")
    overall = _frontier(signed, []).mark_line(color=INK, opacity=0.13, strokeWidth=11, strokeCap="round", strokeJoin="round")
    own = _frontier(signed, ["architecture"]).mark_line(strokeWidth=1.8, opacity=0.9)
    points = usable.mark_point(filled=True, size=62, opacity=0.9, stroke=None)
    layers = [
        overall.encode(xs, ys, order=order),
        *([_bands(look, x, y, x_scale, y_scale)] if look.seeds else []),
        own.encode(xs, ys, color_of(look), dash_of(), order=order),
        points.encode(
            xs,
            ys,
            color_of(look),
            shape_of(look),
            tooltip=tooltip(*dict.fromkeys([x, y, *extra, "l1_coefficient"])),
        ),
    ]
    return _finished(look, alt.layer(*layers), HEIGHT)


def relation(
    look: Look,
    x: str,
    y: str,
    *,
    x_scale: Scale = LINEAR,
    y_scale: Scale = LINEAR,
    range_of_interest: tuple[float, float] | None = None,
) -> alt.LayerChart:
    """Returns runs as points and, per architecture, a line through the settings' means: no frontier, nothing is best here.

    Args:
        look: Where it is shown.
        x: Axis.
        y: Axis.
        x_scale: Of x.
        y_scale: Of y.
        range_of_interest: A stretch of y to shade.
    """
    usable = _shown(look, "runs").transform_filter(f"isValid(datum['{x}']) && isValid(datum['{y}'])")
    xs, ys = x_axis(x, x_scale), y_axis(y, y_scale)
    averages = [alt.AggregatedFieldDef(op="mean", field=key, **{"as": key}) for key in dict.fromkeys([x, y])]
    means = usable.transform_aggregate(averages, groupby=["architecture", "penalty", "group"])
    means = means.mark_line(strokeWidth=1.6, opacity=0.7)
    layers = [
        means.encode(xs, ys, color_of(look), dash_of(), order=alt.Order(field=x, type="quantitative")),
        usable.mark_point(filled=True, size=52, opacity=0.9, stroke=None).encode(
            xs,
            ys,
            color_of(look),
            shape_of(look),
            tooltip=tooltip(*dict.fromkeys([x, y, "l0", "l1_coefficient"])),
        ),
    ]
    if range_of_interest is not None:
        low, high = range_of_interest
        shade = alt.Chart(alt.Data(values=[{"low": low, "high": high}])).mark_rect(color=INK, opacity=0.08)
        layers.insert(0, shade.encode(y=alt.Y(field="low", type="quantitative", title=AXES[y].title), y2="high"))
    return _finished(look, alt.layer(*layers), SMALL_HEIGHT)


def coverage(look: Look, *, ticks: Sequence[float]) -> alt.LayerChart:
    """Returns the target range of L0 cut into bins, per architecture: filled bins coloured, with their number of trials."""
    bins = _shown(look, "bins")
    x = alt.X(
        field="low", type="quantitative", title=AXES["l0"].title, scale=alt.Scale(type="log", nice=False), axis=_labelled(ticks)
    )
    y = alt.Y(
        field="architecture",
        type="nominal",
        sort=list(look.architectures),
        title=None,
        axis=alt.Axis(labelLimit=150, labelFlush=False),
    )
    about = [
        alt.Tooltip(field="architecture", type="nominal"),
        alt.Tooltip(field="low", type="quantitative", title="L0 from", format=".3~g"),
        alt.Tooltip(field="high", type="quantitative", title="to", format=".3~g"),
        alt.Tooltip(field="count", type="quantitative", title="finished trials"),
    ]
    empty = bins.mark_rect(color=INK, opacity=0.07, cornerRadius=2).encode(x, y, x2="high", tooltip=about)
    filled = bins.transform_filter("datum.count > 0").mark_rect(cornerRadius=2, opacity=0.85)
    counts = bins.transform_filter("datum.count > 0").transform_calculate(middle="sqrt(datum.low * datum.high)")
    inside = alt.X(field="middle", type="quantitative", scale=alt.Scale(type="log", nice=False), title=AXES["l0"].title)
    layers = [
        empty,
        filled.encode(x, y, color_of(look), x2="high", tooltip=about),
        counts.mark_text(fontSize=11, fontWeight=600, color="#111").encode(
            inside, y, text=alt.Text(field="count", type="quantitative"), tooltip=about
        ),
    ]
    return _finished(look, alt.layer(*layers), 30 * len(look.architectures) + 10)


def course(look: Look, architecture: str, *, last_step: int, l0_range: tuple[float, float], peak_lr: float) -> alt.LayerChart:
    """Returns one architecture's L0 over training, a line per run, resampling as dashed lines, the learning rate as an area."""
    mine = f"datum.architecture === {json.dumps(architecture)}"
    x = alt.X(
        field="step",
        type="quantitative",
        title="training step",
        scale=alt.Scale(domain=[0, last_step], nice=False),
        axis=alt.Axis(format="~s", tickCount=5),
    )
    rate = (
        alt.Chart(alt.NamedData("courses"))
        .transform_filter(f"{mine} && isValid(datum.lr)")
        .transform_aggregate(lr="max(lr)", groupby=["step"])
        .mark_area(color=INK, opacity=0.08, line={"color": INK, "opacity": 0.3, "strokeWidth": 1})
        .encode(x, alt.Y(field="lr", type="quantitative", axis=None, scale=alt.Scale(domain=[0, 3 * peak_lr])))
    )
    lines = alt.Chart(alt.NamedData("courses")).transform_filter(mine)
    y = alt.Y(
        field="l0",
        type="quantitative",
        title="L0 on training batches",
        scale=alt.Scale(type="log", domain=list(l0_range), clamp=True),
        axis=_labelled(log_ticks(*l0_range)),
    )
    runs = lines.mark_line(strokeWidth=1.5).encode(
        x,
        y,
        color_of(look),
        detail=[alt.Detail(field="run_id", type="nominal")],
        opacity=alt.Opacity(
            field="l1_coefficient", type="quantitative", legend=None, scale=alt.Scale(type="sqrt", range=[0.6, 1])
        ),
        tooltip=[
            alt.Tooltip(field="label", type="nominal", title="run"),
            alt.Tooltip(field="step", type="quantitative", format=",d"),
            alt.Tooltip(field="l0", type="quantitative", title="L0", format=".3~g"),
            alt.Tooltip(field="lr", type="quantitative", title="learning rate", format=".2~e"),
        ],
    )
    events = alt.Chart(alt.NamedData("resampled")).transform_filter(mine).mark_rule(strokeDash=[4, 3], color=INK, opacity=0.6)
    marked = events.encode(
        x,
        tooltip=[
            alt.Tooltip(field="step", type="quantitative", title="resampled at step", format=",d"),
            alt.Tooltip(field="latents", type="quantitative", title="latents replaced (mean of runs)", format=",.0f"),
        ],
    )
    chart = alt.layer(rate, alt.layer(runs, marked)).resolve_scale(y="independent")
    return _finished(look, chart.properties(title=architecture) if look.paper else chart, SMALL_HEIGHT)


def chances(look: Look, *, ticks: Sequence[float]) -> alt.Chart:
    """Returns, stacked over L0, the probability that each architecture has the lowest degradation."""
    chart = _shown(look, "chances").mark_area(opacity=0.85)
    encoded = chart.encode(
        alt.X(
            field="at",
            type="quantitative",
            title=AXES["l0"].title,
            scale=alt.Scale(type="log", nice=False),
            axis=_labelled(ticks),
        ),
        alt.Y(
            field="chance",
            type="quantitative",
            stack="zero",
            title="probability of being best",
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(format=".0%"),
        ),
        color_of(look),
        tooltip=[
            alt.Tooltip(field="architecture", type="nominal"),
            alt.Tooltip(field="at", type="quantitative", title="L0", format=".3~g"),
            alt.Tooltip(field="chance", type="quantitative", title="probability", format=".0%"),
        ],
    )
    return _finished(look, encoded, SMALL_HEIGHT)


def _labelled(ticks: Sequence[float]) -> alt.Axis:
    return alt.Axis(format=".3~g", values=list(ticks))


def _bands(look: Look, x: str, y: str, x_scale: Scale, y_scale: Scale) -> alt.Chart:
    """Returns the intervals of the curves in this plane; none are there for planes that nobody worked them out for."""
    xs = x_axis(x, x_scale)
    low = y_axis(y, y_scale)
    area = _shown(look, "bands").transform_filter(f"datum.plane === '{x}|{y}'")
    renamed = area.transform_calculate(**{x: "datum.at", y: "datum.low"})
    return renamed.mark_area(opacity=0.2).encode(xs, low, alt.Y2("high"), color_of(look))


def _frontier(chart: alt.Chart, groups: list[str]) -> alt.Chart:
    """Keeps the rows of (fx, fy) that no other row of their group dominates."""
    # Two windows, because Vega's minimum over an empty frame is not null but undefined behaviour of its own.
    order: list[alt.SortField | dict[str, str]] = [
        alt.SortField("fx", order="ascending"),
        alt.SortField("fy", order="ascending"),
    ]
    so_far = chart.transform_window(lowest="min(fy)", frame=[None, 0], groupby=groups, sort=order)
    before = so_far.transform_window(lowest_before="lag(lowest)", frame=[None, None], groupby=groups, sort=order)
    return before.transform_filter("!isValid(datum.lowest_before) || datum.fy < datum.lowest_before")


def _shown(look: Look, data: str) -> alt.Chart:
    chart = alt.Chart(alt.NamedData(data))
    return chart if look.paper else chart.transform_filter("!hidden[datum.architecture]")


def _finished(look: Look, chart: Any, height: int) -> Any:
    sized = chart.properties(height=height, width=480 if look.paper else "container")
    configured = sized.configure(**CONFIG)
    return configured if look.paper else configured.add_params(alt.param(name="hidden", value={}))
