"""The table of all runs and the small tables around it, as cells that sort by value and read as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from prolu_tune.config.names import place
from prolu_tune.report.best_at import L0_TICKS
from prolu_tune.report.collect import SweepData
from prolu_tune.report.curves import Planes
from prolu_tune.screen.words import coefficient, count, duration, number, signed

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of the table of runs."""

    key: str
    title: str
    kind: Literal["text", "number"] = "number"
    title_text: str = ""
    """What it means, shown when hovering."""
    optional: bool = False
    """Left out where no run has it."""


COLUMNS: tuple[Column, ...] = (
    Column("architecture", "architecture", "text"),
    Column("l1_coefficient", "coefficient"),
    Column("lr", "lr"),
    Column("seed", "seed"),
    Column("l0", "L0", title_text="active latents per token, held-out"),
    Column("ce_degradation", "CE +nats", title_text="rise of the language model's loss with the reconstruction spliced in"),
    Column("on_frontier", "★", title_text="on the frontier of L0 and CE degradation"),
    Column("ce_loss_score", "CE score", title_text="share of the loss between zeroing and leaving alone that is recovered"),
    Column("mse", "MSE"),
    Column("fvu", "FVU"),
    Column("l1", "L1"),
    Column("sqrt_l1", "sqrt L1"),
    Column("relative_norm", "rel. norm"),
    Column("magnitude_slope", "slope", title_text="of reconstructed against true magnitude", optional=True),
    Column("frac_alive", "alive"),
    Column("frac_negative_bias", "bias < 0"),
    Column("tokens", "tokens"),
    Column("wall_s", "time"),
    Column("state", "state", "text"),
    Column("run_id", "MLflow run", "text"),
    Column("checkpoint", "checkpoint", "text"),
)
SHARES = ("frac_alive", "frac_negative_bias")


def columns(data: SweepData) -> list[Column]:
    """Returns the columns that this sweep has values for."""
    return [column for column in COLUMNS if not column.optional or any(row.get(column.key) is not None for row in data.rows)]


def run_rows(data: SweepData) -> list[Row]:
    """Returns a row of cells per trial, by architecture, coefficient and seed."""
    shown = columns(data)
    return [
        {
            "run_id": row["run_id"],
            "architecture": row["architecture"],
            "cells": [
                {"value": _sortable(row.get(column.key)), "text": _text(column.key, row.get(column.key)), "css": _css(column)}
                for column in shown
            ],
        }
        for row in sorted(data.rows, key=_by_architecture)
    ]


def suppression_table(data: SweepData, planes: Planes) -> dict[str, Any]:
    """Returns L1 at a few values of L0 per architecture, and its ratio to that of ReLU with the same penalty."""
    plane = planes.get("l0", "l1", frontier=False)
    if plane is None:
        return {"ticks": [], "rows": []}
    inside = [tick for tick in L0_TICKS if plane.grid[0] <= tick <= plane.grid[-1]]
    places = {tick: int(np.argmin(np.abs(np.log(plane.grid) - np.log(tick)))) for tick in inside}
    known = [tick for tick in inside if sum(bool(np.isfinite(curve[places[tick]])) for curve in plane.estimate.values()) > 1]
    ticks = known[:: max(1, -(-len(known) // 6))]
    rows = []
    for name in data.architectures:
        if name not in plane.estimate:
            continue
        values = [plane.estimate[name][places[tick]] for tick in ticks]
        base = f"relu+{name.partition('+')[2]}"
        ratio = plane.ratio(name, base) if base in plane.estimate and base != name else None
        rows.append(
            {
                "architecture": name,
                "values": [float(value) if np.isfinite(value) else None for value in values],
                "ratio": _ratio(ratio, seeded=plane.replicates is not None),
            }
        )
    return {"ticks": ticks, "rows": rows}


def cost(data: SweepData) -> list[tuple[str, str]]:
    """Returns what the sweep took, as pairs of words."""
    timed = [row for row in data.rows if row["wall_s"]]
    seconds, tokens = sum(row["wall_s"] for row in timed), sum(row["tokens"] or 0 for row in timed)
    pairs = [
        ("trials in MLflow", f"{len(data.rows)}" + (f" of {data.num_trials} planned" if data.num_trials else "")),
        ("tokens trained on, all trials", count(tokens)),
        ("training time, all trials", duration(seconds)),
    ]
    if timed and seconds:
        pairs.append(("tokens per second and trial", count(tokens / seconds)))
    pairs.append(("from the sweep's start to its end", duration(data.span_s)))
    return pairs


def states(rows: Sequence[Row]) -> str:
    """Returns the trials that did not finish, in words; empty where all did."""
    found: dict[str, int] = {}
    for row in rows:
        if row["state"] != "finished":
            found[row["state"]] = found.get(row["state"], 0) + 1
    return ", ".join(f"{number} {state}" for state, number in found.items())


def _by_architecture(row: Row) -> tuple[int, str, float, int]:
    name = row["architecture"] or ""
    return place(name), name, row["l1_coefficient"] or 0.0, row["seed"] or 0


def _ratio(ratio: tuple[float, float, float] | None, *, seeded: bool) -> str:
    if ratio is None:
        return "-"
    value, low, high = ratio
    return f"{value:.2f} ×" + (f" ({low:.2f} … {high:.2f})" if seeded else "")


def _sortable(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _text(key: str, value: Any) -> str:
    if key == "on_frontier":
        return "★" if value else ""
    if value is None:
        return "-"
    if key in ("l1_coefficient", "lr"):
        return coefficient(value)
    if key in SHARES:
        return f"{100 * value:.3g} %"
    if isinstance(value, str) or key == "seed":
        return str(value)
    forms = {"tokens": count, "wall_s": duration, "ce_degradation": signed}
    return forms.get(key, number)(value)


def _css(column: Column) -> str:
    if column.key in ("run_id", "checkpoint"):
        return "left mono"
    return "left" if column.kind == "text" else ""
