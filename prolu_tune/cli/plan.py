"""`plan`: checks a search space and tells what it would take; runs nothing."""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prolu_tune.cli.options import Json, Settings, SpaceFile, Storage, SweepName, examples
from prolu_tune.cli.plan_text import origin_lines, origins, plan_lines, size
from prolu_tune.results.store import DEFAULT_STORAGE

if TYPE_CHECKING:
    from prolu_tune.config.shape import ModelShape
    from prolu_tune.search.space import LoadedSpace
    from prolu_tune.sweep.estimate import Estimate, Machine

Document = dict[str, Any]


def register(app: typer.Typer) -> None:
    """Adds the verb of this module."""
    app.command(
        "plan",
        help="Checks a search space and prints architectures, trials, tokens, memory, disk and a time estimate; runs nothing.",
        epilog=examples(
            "prolu-tune plan search_spaces/exp3.yaml",
            "prolu-tune plan search_spaces/exp3.yaml --set training.num_tokens=4e7 -v",
            "prolu-tune plan search_spaces/exp3.yaml --price-per-hour 2.50",
            "prolu-tune plan search_spaces/adaptive.yaml --json",
            note="Environment: PROLU_STORAGE. Needs no weights: only the model's config.json, fetched where it is not known.",
        ),
    )(plan)


def plan(
    space_file: SpaceFile,
    name: SweepName = None,
    settings: Settings = None,
    storage: Storage = DEFAULT_STORAGE,
    price: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour",
            metavar="USD",
            min=0.0,
            help="Price of an hour of one GPU, or of this machine where trials train on CPUs: adds what the sweep costs.",
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Says where each value comes from.")] = False,
    as_json: Json = False,
) -> None:
    from prolu_tune.config.resolve import plan_trial
    from prolu_tune.config.shape import hook_width, hub_shape
    from prolu_tune.search.space import read_space
    from prolu_tune.sweep.estimate import estimate, this_machine

    loaded = read_space(space_file, overrides=settings, name=name)
    shape, d_in = loaded.shape, loaded.d_in
    if shape is None and loaded.space.activations.model != "embedded":
        shape = hub_shape(loaded.space.activations)
        d_in = shape and hook_width(loaded.space.activations.hook_name, shape)
    if d_in is None:
        d_in = loaded.space.sae.d_in
    if d_in is not None:
        for variant in loaded.space.variants():
            plan_trial(loaded.space.trial(variant, 1.0), d_in=d_in)
    machine = this_machine()
    costs = estimate(loaded.space, machine, shape=shape, d_in=d_in)
    expected = _expected(loaded, machine, costs, shape, d_in)
    notes = [*_unchecked(loaded, shape, d_in), *_shortages(loaded, machine, costs, storage)]
    document = _document(loaded, machine, costs, d_in, notes)
    document["expected"] = expected
    document["price"] = _price(document, price)
    if verbose:
        document["values"] = origins(loaded)
    if as_json:
        typer.echo(json.dumps(document, allow_nan=False, indent=2))
    else:
        for line in (*plan_lines(loaded, document), *(["", *origin_lines(document["values"])] if verbose else [])):
            typer.echo(line)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"next: prolu-tune run {space_file}{''.join(f' --set {setting}' for setting in settings or [])}", file=sys.stderr)


def _unchecked(loaded: "LoadedSpace", shape: "ModelShape | None", d_in: int | None) -> Iterator[str]:
    """Returns what could not be checked here."""
    activations = loaded.space.activations
    if shape is None:
        yield f"not checked, since config.json of {activations.model} cannot be had here: hook_name, d_in, memory, disk, time"
    elif d_in is None:
        yield f"not checked before the model is loaded: {activations.hook_name} and its width, hence memory, disk and time"
    yield "not checked before the data is opened: whether it holds enough rows"


def _shortages(loaded: "LoadedSpace", machine: "Machine", costs: "Estimate", storage: Any) -> Iterator[str]:
    """Returns what this machine lacks; another one may run the sweep."""
    resources = loaded.space.resources
    for kind, wanted, there in (
        ("GPU", resources.gpus_per_trial, machine.num_gpus),
        ("CPU", resources.cpus_per_trial, machine.num_cpus),
    ):
        if wanted > there:
            yield f"a trial needs {wanted:g} {kind} and this machine has {there}, so run would refuse here (see run --address)"
    if loaded.space.device == "cpu" and costs.trial_memory_bytes is not None and costs.model_memory_bytes is not None:
        needed = costs.trials_at_once * costs.trial_memory_bytes + costs.model_memory_bytes
        if needed > 0.9 * machine.memory_bytes:
            yield (
                f"{costs.trials_at_once} trials at once and the model need about {size(needed)} of memory; this machine has "
                f"{size(machine.memory_bytes)}: lower resources.max_concurrent_trials or training.batch_size"
            )
    if costs.cache_bytes is not None and costs.trial_disk_bytes is not None:
        import shutil

        folder = storage.expanduser().absolute()
        free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
        needed = costs.cache_bytes + loaded.space.num_trials * costs.trial_disk_bytes
        if needed > free:
            yield (
                f"up to {size(needed)} of disk are needed, {size(free)} are free under {storage}: "
                "lower activations.cache_gb or give --storage"
            )


def _expected(
    loaded: "LoadedSpace", machine: "Machine", costs: "Estimate", shape: "ModelShape | None", d_in: int | None
) -> Document | None:
    """Returns what a coverage sweep comes to when simulated, each as low, middle, high; None for a grid, which is certain."""
    if loaded.space.search.kind == "grid":
        return None
    from dataclasses import asdict

    from prolu_tune.search.forecast import forecast
    from prolu_tune.sweep.estimate import estimate

    told = asdict(forecast(loaded.space, max_concurrent=costs.trials_at_once))
    told["tokens"], told["wall_s"] = {}, {}
    for end, cost in told["cost"].items():
        # As a sweep of so many whole trainings; stopped trials are counted by the share that they train.
        search = loaded.space.search.model_copy(update={"max_trials": max(1, round(cost))})
        as_trained = estimate(loaded.space.model_copy(update={"search": search}), machine, shape=shape, d_in=d_in)
        told["tokens"][end], told["wall_s"][end] = as_trained.tokens, as_trained.wall_s
    return told


def _price(document: Document, per_hour: float | None) -> Document | None:
    """Returns hours and dollars: `most` if every trial trains to its end, for a coverage sweep also what is expected."""
    if per_hour is None:
        return None
    on_gpus = document["device"] == "cuda"
    units = max(1, document["machine"]["num_gpus"]) if on_gpus else 1

    def priced(seconds: float | None) -> Document | None:
        return None if seconds is None else {"hours": seconds / 3600 * units, "usd": seconds / 3600 * units * per_hour}

    expected = document["expected"]
    return {
        "usd_per_hour": per_hour,
        "hour_of": "one GPU" if on_gpus else "this machine",
        "step_time": "assumed: 100 TFLOP/s a GPU" if on_gpus else "estimated from a matrix product measured here just now",
        "most": priced(document["estimate"]["wall_s"]),
        "expected": expected and {end: priced(seconds) for end, seconds in expected["wall_s"].items()},
    }


def _document(loaded: "LoadedSpace", machine: "Machine", costs: "Estimate", d_in: int | None, notes: list[str]) -> Document:
    """Returns the plan as data."""
    from dataclasses import asdict

    from prolu_tune.config.resolve import plan_trial
    from prolu_tune.results.records import chosen_by

    space = loaded.space
    trials = []
    for index, config in enumerate(space.trials()):
        steps = plan_trial(config, d_in=d_in or config.sae.d_in or 1)
        trials.append(
            {
                "trial": index,
                **chosen_by(config),
                "tokens": config.training.num_tokens,
                "steps": steps.num_steps,
                "d_in": d_in,
                "d_sae": config.sae.d_sae or (steps.d_sae if d_in is not None else None),
            }
        )
    return {
        "schema": 1,
        "sweep": space.name,
        "search": space.search.model_dump(mode="json"),
        "device": space.device,
        "num_trials": space.num_trials,
        "architectures": {name: list(space.coefficient_range(name)) for name in space.architectures},
        "trials": trials,
        "estimate": asdict(costs),
        "machine": asdict(machine),
        "notes": notes,
    }
