"""A plan as lines for a person: what runs, what each trial takes, and on request where each value comes from."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prolu_tune.screen.words import duration

if TYPE_CHECKING:
    from prolu_tune.search.space import LoadedSpace

Document = dict[str, Any]


def plan_lines(loaded: "LoadedSpace", document: Document) -> Iterator[str]:
    """Returns the plan as lines for a person."""
    space, costs = loaded.space, document["estimate"]
    most = "at most " if space.search.kind == "coverage" else ""
    yield f"{space.name}: {most}{space.num_trials} trials, {len(space.architectures)} architectures, {space.search.kind} search"
    yield f"{space.activations.model} at {space.activations.hook_name}, text {space.activations.dataset}"
    yield ""
    if document["trials"]:
        yield from _table(document["trials"], space.grid)
    else:
        target = document["search"]
        low, high = target["l0"]
        yield f"{target['bins']} bins of L0 from {low:g} to {high:g} for each architecture; l1_coefficient is chosen within"
        width = max(map(len, space.architectures))
        for architecture, (low, high) in document["architectures"].items():
            yield f"  {architecture:<{width}}  {low:g} to {high:g}"
    yield ""
    config = space.base
    first = document["trials"][0] if document["trials"] else {}
    steps = f" = {first['steps']:,} steps of {config.training.batch_size:,}" if first else ""
    widths = f", d_in {first['d_in']:,}, d_sae {first['d_sae']:,}" if first and first["d_in"] and first["d_sae"] else ""
    at_once = f"{costs['trials_at_once']} at once on this machine"
    all_trials = "all trials" if document["expected"] is None else "at most"
    for label, text in (
        ("each trial", f"{config.training.num_tokens:,} tokens{steps}{widths}"),
        (all_trials, f"{costs['tokens']:,} tokens, {at_once}, on {space.device}"),
        ("model", f"reads {costs['stream_tokens']:,} tokens for training, {config.evaluation.num_tokens:,} for an evaluation"),
        ("memory", f"{size(costs['trial_memory_bytes'])} a trial, {size(costs['model_memory_bytes'])} for the language model"),
        ("disk", f"{size(costs['trial_disk_bytes'])} a trial, {size(costs['cache_bytes'])} for activations"),
        ("time", _time(costs, document["machine"], space.device)),
        *_expected(document["expected"]),
        *_price(document["price"]),
    ):
        yield f"{label:<12} {text}"


def _table(trials: list[Document], grid: Any) -> Iterator[str]:
    """Returns the trials by architecture and coefficient; the first column is the order in which they run."""
    columns = ["trial", "architecture", "l1_coefficient", "lr", "seed"]
    rows = [
        [f"{trial[name]:g}" if isinstance(trial[name], float) else str(trial[name]) for name in columns] for trial in trials
    ]
    order = sorted(
        range(len(trials)), key=lambda i: (_first_seen(trials, i), trials[i]["seed"], trials[i]["l1_coefficient"], i)
    )
    widths = [max(len(name), *(len(row[i]) for row in rows)) for i, name in enumerate(columns)]
    for row in [columns, *(rows[i] for i in order)]:
        yield "  ".join(
            f"{cell:<{width}}" if i == 1 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
    further = [key for key in grid if key != "training.lr"]
    if further:
        yield f"(also varied: {', '.join(further)})"


def _first_seen(trials: list[Document], index: int) -> int:
    return next(i for i, trial in enumerate(trials) if trial["architecture"] == trials[index]["architecture"])


def _time(costs: Document, machine: Document, device: str) -> str:
    if costs["wall_s"] is None:
        return "not known without the model's size"
    seconds = costs["wall_s"]
    if device == "cuda":
        return f"about {duration(seconds)}, an estimate: {costs['flop'] / 1e15:,.0f} PFLOP at an assumed 100 TFLOP/s a GPU"
    return (
        f"about {duration(seconds)}, an estimate: {costs['flop'] / 1e12:,.1f} TFLOP, "
        f"{machine['flops'] / 1e9:,.0f} GFLOP/s measured on {machine['num_cpus']} CPUs just now"
    )


def _expected(told: Document | None) -> Iterator[tuple[str, str]]:
    """Returns the lines of a simulated coverage sweep."""
    if told is None:
        return
    trials, cost = _range(told["trials"], "{:.0f}"), _range(told["cost"], "{:.0f}")
    filled = _range({end: 100 * share for end, share in told["filled"].items()}, "{:.0f}")
    yield (
        "expected",
        (
            f"{trials} trials, some stopped early, for the price of {cost} whole ones; {filled} % of the bins "
            f"({told['sweeps']} sweeps simulated on curves that lead to every bin)"
        ),
    )
    tokens, seconds = told["tokens"], told["wall_s"]
    hours = "" if seconds["low"] is None else f", {duration(seconds['low'])} to {duration(seconds['high'])}"
    yield "", f"{_range(tokens, '{:,.0f}')} tokens{hours}"


def _range(told: Document, form: str) -> str:
    low, high = form.format(told["low"]), form.format(told["high"])
    return low if low == high else f"{low} to {high}"


def _price(told: Document | None) -> Iterator[tuple[str, str]]:
    """Returns the line of dollars."""
    if told is None:
        return
    rate = f"at ${told['usd_per_hour']:,.2f} an hour of {told['hour_of']}"
    if told["most"] is None:
        yield "price", f"not known without the model's size, {rate}"
        return
    most = f"${told['most']['usd']:,.2f} ({told['most']['hours']:,.2f} hours)"
    if told["expected"] is None:
        yield "price", f"about {most} {rate}; step time {told['step_time']}"
        return
    low, high = told["expected"]["low"], told["expected"]["high"]
    yield "price", f"${low['usd']:,.2f} to ${high['usd']:,.2f} {rate}, at most {most}; step time {told['step_time']}"


def size(number: float | None) -> str:
    """Returns bytes in GB or MB."""
    if number is None:
        return "unknown"
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.0f} MB"


def origins(loaded: "LoadedSpace") -> dict[str, Document]:
    """Returns every value of the space by its dotted key: `value`, and `from`: a place in the file, a flag, or `default`."""
    places, found = loaded.document.values, {}
    data = loaded.space.to_json()
    data["architectures"] = {
        name: list(space.l1_coefficient.numbers() or loaded.space.coefficient_range(name))
        for name, space in loaded.space.architectures.items()
    }
    for section, content in data.items():
        parts = (
            {(section, key): value for key, value in content.items()} if isinstance(content, dict) else {(section,): content}
        )
        for path, value in parts.items():
            default = "file name" if path == ("name",) else "default"
            found[".".join(path)] = {"value": value, "from": places.get(path, default)}
    return found


def origin_lines(values: dict[str, Document]) -> Iterator[str]:
    """Returns `origins` as lines in three columns."""
    rows = [(key, json.dumps(value["value"]), value["from"]) for key, value in values.items()]
    left, middle = max(len(row[0]) for row in rows), min(48, max(len(row[1]) for row in rows))
    for key, value, place in rows:
        yield f"{key:<{left}}  {value:<{middle}}  {place}"
