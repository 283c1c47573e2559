"""Puts the report together: numbers, plots and words into one page that needs nothing beside it."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from prolu_tune import __version__
from prolu_tune.report.axes import AXES, CHOICES, LOG_SPAN, color, in_order, measured, shape
from prolu_tune.report.best_at import SURE, best_at
from prolu_tune.report.collect import SweepData
from prolu_tune.report.curves import INTERVAL, ONE_SEED_TOLERANCE, REPLICATES, WIDEST_GAP, Planes
from prolu_tune.report.findings import BIAS_SHARE, COMPARABLE, CONTRADICTION, FAILS, HOLDS, UNKNOWN, Finding, check_findings
from prolu_tune.report.plots import Plot, datasets, penalties, plots
from prolu_tune.report.table import columns, cost, run_rows, states, suppression_table
from prolu_tune.report.theme import CONFIG, Look
from prolu_tune.screen.words import count, duration, number, signed

VEGA_LITE = "6.4"
"""Version of Vega-Lite whose JavaScript goes into the page; the one that Altair writes for."""
HEADLINE_L0 = 25.0


@dataclass(frozen=True)
class Report:
    """A report, made."""

    html: str
    data: SweepData
    findings: list[Finding]
    plots: list[Plot]
    datasets: dict[str, list[dict[str, Any]]]


def build_report(data: SweepData) -> Report:
    """Returns the page of a sweep, and what its figures on paper are made of."""
    planes = Planes(data.finished)
    findings = check_findings(planes)
    shown, tables = plots(data, planes), datasets(data, planes)
    look = Look(data.architectures, seeds=data.seeds > 1)
    payload = {
        "main": next((plot.name for plot in shown if plot.section == "main"), None),
        "log_span": LOG_SPAN,
        "seeds": data.seeds,
        "banded": sorted({row["plane"] for row in tables["bands"]}),
        "axes": {
            key: {"title": axis.title, "short": axis.short, "larger": axis.larger_is_better} for key, axis in AXES.items()
        },
        "config": CONFIG,
        "specs": {plot.name: _slim(plot.make(look).to_dict()) for plot in shown},
        "datasets": {name: _by_column(rows) for name, rows in tables.items()},
    }
    text = _template().render(
        **_words(data, planes),
        **_numbers(data, planes),
        findings=findings,
        sections=_sections(shown),
        css=Markup(_page_file("page.css")),  # noqa: S704 - our own file
        script=Markup(_page_file("bands.js") + _page_file("page.js")),  # noqa: S704 - our own files
        library=Markup(_library()),  # noqa: S704 - the plotting package's own
        data=Markup(_json(payload)),  # noqa: S704 - JSON without a "<"
        classes={HOLDS: "holds", FAILS: "fails", UNKNOWN: "open"},
        icons={HOLDS: "✓", FAILS: "✗", UNKNOWN: "?"},
    )
    return Report(text, data, findings, shown, tables)


def _numbers(data: SweepData, planes: Planes) -> dict[str, Any]:
    """Returns tables, findings and settings for the template."""
    plane = planes.get("l0", "ce_degradation")
    names = in_order(row["architecture"] for row in data.rows if row["architecture"])
    penalty = penalties(names)
    return {
        "architectures": data.architectures,
        "look": {name: {"color": color(name), "shape": shape(name), "penalty": penalty[name]} for name in names},
        "names": names,
        "seeds": data.seeds,
        "choices": measured(data.finished, CHOICES),
        "axes": AXES,
        "best": best_at(plane) if plane is not None else [],
        "suppression": suppression_table(data, planes),
        "columns": columns(data),
        "rows": run_rows(data),
        "troubled": [row for row in data.rows if row["state"] not in ("finished", "running")],
        "cost": cost(data),
        "varied": [(key, _listed(values)) for key, values in data.varied.items()],
        "settings": sorted(data.settings.items()),
        "versions": sorted(data.versions.items()),
        "space": json.dumps(data.space, indent=2, ensure_ascii=False) if data.space else "",
    }


def _words(data: SweepData, planes: Planes) -> dict[str, Any]:
    """Returns title, tiles and notes for the template."""
    settings = data.settings
    named, hook = Path(settings.get("activations.model", "?")), settings.get("activations.hook_name", "?")
    # A folder's path is long, and stands in the configuration below.
    model = named.name if named.is_absolute() else str(named)
    tokens = [row["tokens"] for row in data.finished if row["tokens"]]
    each = count(max(tokens)) if tokens else "?"
    return {
        "name": data.name,
        "run_id": data.run_id,
        "version": __version__,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "subtitle": f"Sparse autoencoders on {hook} of {model}, {each} tokens each",
        "tiles": _tiles(data),
        "notes": _notes(data),
        "interval": f"{INTERVAL[0]:.0f} to {INTERVAL[1]:.0f} %",
        "noise": _noise(data),
        "scope": f"The post trained on GPT-2's layer 6, about 400M tokens a run; this sweep on {hook} of {model}, {each}. "
        "A verdict is about the runs at hand.",
        "rules": _rules(data),
    }


def _tiles(data: SweepData) -> list[dict[str, str]]:
    finished = data.finished
    total = data.num_trials if data.num_trials and data.num_trials >= len(data.rows) else len(data.rows)
    tiles = [{"value": f"{len(finished)} of {total}", "label": "trials finished"}]
    usable = [row for row in finished if row["l0"] is not None and row["ce_degradation"] is not None]
    sparse = [row for row in usable if row["l0"] <= HEADLINE_L0]
    if sparse:
        best = min(sparse, key=lambda row: row["ce_degradation"])
        tiles.append({"value": f"{signed(best['ce_degradation'])} nats", "label": f"best at L0 ≤ 25: {best['label']}"})
    if usable:
        low, high = min(row["l0"] for row in usable), max(row["l0"] for row in usable)
        tiles.append({"value": f"{number(low)} to {number(high)}", "label": "L0 reached"})
        tiles.append({"value": str(sum(row["on_frontier"] for row in usable)), "label": "runs on the frontier"})
    tiles.append({"value": str(data.seeds), "label": "seed per setting" if data.seeds == 1 else "seeds per setting"})
    seconds = sum(row["wall_s"] or 0 for row in data.rows)
    tiles.append({"value": duration(seconds), "label": "training time, all trials"})
    return tiles


def _notes(data: SweepData) -> list[str]:
    notes = []
    if other := states(data.rows):
        notes.append(f"Not finished: {other}. Plots and findings are about finished trials only.")
    if not data.finished:
        notes.append("No trial has finished yet, so there is nothing to compare.")
    return notes


def _noise(data: SweepData) -> str:
    if data.seeds > 1:
        few = " Few seeds make intervals narrower than they should be." if data.seeds < 5 else ""
        return f"Within noise: less than {100 * SURE:.0f} % of {REPLICATES} resamplings of the seeds agree on the best.{few}"
    return "With one seed nothing is known about noise; give the space several seeds for intervals."


def _rules(data: SweepData) -> str:
    opposed, comparable, seed_limit = (f"{100 * share:.0f} %" for share in (CONTRADICTION, COMPARABLE, ONE_SEED_TOLERANCE))
    if data.seeds > 1:
        compared = f"a difference counts where its 95 % interval over {REPLICATES} resamplings of seeds excludes zero"
    else:
        compared = f"with one seed, differences under {seed_limit} are not counted, and what noise would do is not known"
    return (
        "Architectures are compared at equal L0 (or L1), on curves through their runs that are not joined over gaps wider "
        f"than a factor of {WIDEST_GAP:.0f}; {compared}. 'Best in a range' fails if another is better on more than {opposed} "
        "of the compared range, holds if it is better than all others on at least half of it and does not fail, and cannot be "
        f"told otherwise, or if less than {comparable} of the range has two others to compare with. 'On the frontier "
        f"everywhere' fails only if another is better on more than {opposed}. The share of negative biases holds if "
        f"{100 * BIAS_SHARE:.0f} % of the ProLU runs lie in the range. A finding in parts holds if all do, fails if one does."
    )


def _listed(values: list[str]) -> str:
    shown = [number(float(value), digits=4) if _is_number(value) else value for value in values]
    return ", ".join(shown[:24]) + (f" … ({len(shown)} values)" if len(shown) > 24 else "")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return not text.lstrip("-").isdigit()


def _sections(shown: list[Plot]) -> dict[str, list[Plot]]:
    names = ("main", "chances", "proxies", "suppression", "response", "courses", "latents")
    return {name: [plot for plot in shown if plot.section == name] for name in names}


def _slim(spec: dict[str, Any]) -> dict[str, Any]:
    """Returns the specification without what all share: the configuration, and the address of a schema nobody asks for."""
    return {key: value for key, value in spec.items() if key not in ("$schema", "config")}


def _by_column(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the rows by column, words as indices into a list of the different ones: a third of the characters."""
    columns: dict[str, Any] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(key) for row in rows]
        if any(isinstance(value, str) for value in values):
            words = list(dict.fromkeys(values))
            places = {word: index for index, word in enumerate(words)}
            columns[key] = {"words": words, "at": [places[value] for value in values]}
        else:
            columns[key] = values
    return {"length": len(rows), "columns": columns}


def _json(payload: dict[str, Any]) -> str:
    """Returns JSON that may stand inside a script element, whatever names users gave."""
    text = json.dumps(payload, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def _library() -> str:
    """Returns Vega, Vega-Lite and Vega-Embed as one script, from the plotting package itself."""
    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    assert "</script" not in text.lower() and "<!--" not in text, "the bundle must be safe inside a script element"
    return text


def _page_file(name: str) -> str:
    return files("prolu_tune.report").joinpath("page", name).read_text(encoding="utf-8")


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["n"] = number
    environment.filters["d"] = lambda value: f"{value:+.3g}"
    environment.filters["p"] = lambda share: "-" if share is None else f"{100 * share:.0f} %"
    return environment.from_string(_page_file("page.html.j2"))
