"""`status`, `pareto`, `best`, `dashboard`: what a sweep found, read from MLflow alone."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prolu_tune.cli.options import (
    Architectures,
    Cluster,
    Json,
    Name,
    Names,
    Seeds,
    Storage,
    TrackingUri,
    Where,
    examples,
    say_next,
    tracked,
)
from prolu_tune.cli.progress import Work
from prolu_tune.cli.tables import Format, aligned, folded, terminal_width, write_table
from prolu_tune.results.records import FIELDS
from prolu_tune.results.store import DEFAULT_STORAGE

if TYPE_CHECKING:
    from prolu_tune.results.query import Sweep

ENVIRONMENT = "Environment: PROLU_STORAGE, PROLU_TRACKING_URI (or MLFLOW_TRACKING_URI), PROLU_EXPERIMENT."
EXIT_CODES = "Exit codes: 0 done, 1 nothing found, 2 wrong input, 3 the tracking store does not answer."


OutputFormat = Annotated[
    Format | None,
    typer.Option("--format", help="All runs asked about as a table on standard output.", show_default=False),
]
PYTHON_LINES = """from prolu_tune import load_sae
sae = load_sae({reference})
recon = sae(x)  # x: raw activations (batch, {d_in}) of {hook}"""


def register(app: typer.Typer) -> None:
    """Adds the verbs of this module."""
    app.command(
        "status",
        help="Trials by state, failures with message and log, coverage of L0, pace and time left.",
        epilog=examples(
            "prolu-tune status quickstart", "prolu-tune status exp3 --watch --cluster cluster/gpu.yaml",
            note=f"{ENVIRONMENT} {EXIT_CODES}",
        ),
    )(status)  # fmt: skip
    app.command(
        "pareto",
        help="The frontier over (L0, CE degradation) or another plane, overall and per architecture.",
        epilog=examples(
            "prolu-tune pareto quickstart",
            "prolu-tune pareto exp1 exp3 --l0 5:50 --architecture prolu_ste+l1",
            "prolu-tune pareto exp3 --x l1 --y mse --format csv > exp3.csv",
            note="Both axes are minimised, but ce_loss_score, frac_alive, relative_norm and magnitude_slope. With filters the "
            f"frontier is that of the runs that pass them. {ENVIRONMENT} {EXIT_CODES}",
        ),
    )(pareto)
    app.command(
        "best",
        help="The run to use: lowest CE degradation with L0 at or under a limit, first of all, then of each architecture.",
        epilog=examples(
            "prolu-tune best quickstart --max-l0 25",
            "prolu-tune best exp3 --max-l0 25 --architecture prolu_ste+l1 --json",
            note=f"{ENVIRONMENT} {EXIT_CODES}",
        ),
    )(best)
    app.command(
        "dashboard",
        help="Opens MLflow's own UI on the tracking store, on this machine only and with its telemetry off.",
        epilog=examples(
            "prolu-tune dashboard",
            "prolu-tune dashboard --port 5001 --no-browser",
            "prolu-tune dashboard --cluster cluster/gpu.yaml",
            note=ENVIRONMENT,
        ),
    )(dashboard)


def status(
    name: Name,
    watch: Annotated[bool, typer.Option("--watch", help="Shows it again and again until the sweep ends.")] = False,
    interval_s: Annotated[float, typer.Option("--interval", help="Seconds between two looks.", min=0.2)] = 5.0,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    cluster: Cluster = None,
    as_json: Json = False,
) -> None:
    from prolu_tune.cli.status import status_lines, watch_status
    from prolu_tune.errors import InputError
    from prolu_tune.results.query import load_sweep

    if watch and as_json:
        raise InputError("--json prints one document, --watch many; leave one of them out")
    tracking_uri = tracked(cluster, tracking_uri)
    if watch:
        raise typer.Exit(
            watch_status(lambda: load_sweep(name, tracking_uri=tracking_uri, storage=storage).status(), interval_s)
        )
    with Work() as work:
        work.show(f"reading {name}")
        document = load_sweep(name, tracking_uri=tracking_uri, storage=storage).status()
    if as_json:
        _print_json(document)
    else:
        print("\n".join(status_lines(document)))
        say_next(f"prolu-tune pareto {shlex.quote(name)}", cluster)
    _exit_if_empty(document["runs"], "no trial has begun")


def pareto(
    names: Names,
    x: Annotated[str, typer.Option("--x", metavar="METRIC", help="Along x.")] = "l0",
    y: Annotated[str, typer.Option("--y", metavar="METRIC", help="Along y.")] = "ce_degradation",
    l0: Annotated[
        str | None, typer.Option("--l0", metavar="LOW:HIGH", help="Only runs with L0 in this range.", show_default=False)
    ] = None,
    architecture: Architectures = None,
    seed: Seeds = None,
    where: Where = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    cluster: Cluster = None,
    form: OutputFormat = None,
    as_json: Json = False,
) -> None:
    from prolu_tune.results.filters import parse_range
    from prolu_tune.results.query import load_sweeps

    _one_output(as_json, form)
    tracking_uri = tracked(cluster, tracking_uri)
    limits = None if l0 is None else parse_range(l0)
    with Work() as work:
        work.show(f"reading {', '.join(names)}")
        whole = load_sweeps(names, tracking_uri=tracking_uri, storage=storage)
    sweep = whole.filter(architecture=architecture or (), l0=limits, seed=seed or (), where=where or ())
    document = pareto_document(sweep, x, y)
    _say_if_mixed(sweep)
    if as_json:
        _print_json(document)
    elif form is not None:
        extra = [axis for axis in dict.fromkeys([x, y]) if axis not in FIELDS]
        write_table(_with_axes(document), form, sweeps=_sweep_of_each(sweep, document["runs"]), extra=extra)
    elif document["runs"]:
        print("\n".join(_pareto_lines(document)))
        say_next(f"prolu-tune best {shlex.join(names)} --max-l0 25", cluster)
    _exit_if_empty(document["runs"], _why_nothing(whole, sweep, x, y))


def best(
    names: Names,
    max_l0: Annotated[
        float | None, typer.Option("--max-l0", metavar="L0", help="Largest L0 wanted; default: any.", min=0, show_default=False)
    ] = None,
    architecture: Architectures = None,
    seed: Seeds = None,
    where: Where = None,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    cluster: Cluster = None,
    form: OutputFormat = None,
    as_json: Json = False,
) -> None:
    from prolu_tune.results.query import load_sweeps

    _one_output(as_json, form)
    tracking_uri = tracked(cluster, tracking_uri)
    with Work() as work:
        work.show(f"reading {', '.join(names)}")
        whole = load_sweeps(names, tracking_uri=tracking_uri, storage=storage)
    sweep = whole.filter(architecture=architecture or (), seed=seed or (), where=where or ())
    on_frontier = {record["run_id"]: record["on_frontier"] for record in whole.records}
    runs = [run | {"on_frontier": on_frontier[run["run_id"]]} for run in sweep.best_by_architecture(max_l0)]
    _say_if_mixed(sweep)
    if as_json:
        _print_json({"sweep": sweep.name, "max_l0": max_l0, "runs": runs})
    elif form is not None:
        write_table(runs, form, sweeps=_sweep_of_each(sweep, runs))
    elif runs:
        limit = "" if max_l0 is None else f" with L0 up to {max_l0:g}"
        print(folded(f"{sweep.name}: lowest CE degradation{limit}, best first", terminal_width()), end="\n\n")
        print("\n".join(aligned(runs, width=terminal_width())))
        if cluster is None:
            print(f"\nTo use the first:\n\n{_python_lines(sweep, runs[0])}")
            say_next(f"prolu-tune pareto {shlex.join(names)}")
        else:
            say_next(f"prolu-tune export {runs[0]['run_id']} FOLDER", cluster)
    _exit_if_empty(runs, f"no finished trial{'' if max_l0 is None else f' has L0 at or under {max_l0:g}'}")


def dashboard(
    port: Annotated[int, typer.Option("--port", help="Port on 127.0.0.1; 0: a free one.", min=0, max=65535)] = 5000,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Opens a browser on it.")] = True,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    cluster: Cluster = None,
) -> None:
    if cluster is not None:
        from prolu_tune.launch.pages import open_pages

        raise typer.Exit(open_pages(cluster, browser=browser))

    from prolu_tune.cli.dashboard import open_dashboard
    from prolu_tune.results.store import resolve_tracking_uri

    raise typer.Exit(open_dashboard(resolve_tracking_uri(tracking_uri, storage), port=port, browser=browser))


def pareto_document(sweep: "Sweep", x: str, y: str) -> dict[str, Any]:
    """Returns the document of `pareto --json`, without its schema.

    `runs` are the finished trials that have both values, `on_frontier` marks the overall frontier on this plane, and
    hypervolumes are measured to `reference`. Where an axis is no field of a run, `points` has the (x, y) of each. With
    several sweeps `sweep_of_run` names each run's.
    """
    placed = sweep.placed(x, y)
    document = {
        "sweep": sweep.name,
        "x": x,
        "y": y,
        "runs": sweep.flagged(placed, x, y),
        "frontier": [record["run_id"] for record in sweep.frontier(x, y)],
        "frontier_by_architecture": sweep.frontier_by_architecture(x, y),
        "hypervolume_by_architecture": sweep.hypervolume_by_architecture(x, y),
        "reference": sweep.reference(x, y),
        "left_out": len(sweep.trials) - len(placed),
    }
    if not {x, y} <= set(FIELDS):
        document["points"] = sweep.points(x, y)
    if len(sweep.facts) > 1:
        document["sweep_of_run"] = {trial.record["run_id"]: trial.tags.get("prolu.sweep") for trial in placed}
    return document


def _pareto_lines(document: dict[str, Any]) -> list[str]:
    """Returns the frontier for people: a scatter, the runs along it, and how the architectures compare."""
    from prolu_tune.screen.draw import legend, scatter
    from prolu_tune.screen.words import number

    x, y, runs = document["x"], document["y"], _with_axes(document)
    by_id = {record["run_id"]: record for record in runs}
    frontier = [by_id[run_id] for run_id in document["frontier"]]
    width = terminal_width()
    heading = f"{document['sweep']}: {len(frontier)} of {len(runs)} finished trials on the frontier over {x} and {y}"
    lines = [folded(heading, width), ""]
    if width is not None:
        plain = not sys.stdout.encoding.lower().startswith("utf")
        lines += [*scatter(runs, frontier, x=x, y=y, width=min(width, 100), ascii_only=plain), ""]
        lines += [*legend((record["architecture"] for record in runs), min(width, 100)), ""]
    lines += [*aligned(frontier, _columns(x, y), width=width), ""]
    size = max(len(name) for name in document["frontier_by_architecture"])
    lines.append(f"{'architecture':<{size}}  on its own frontier  hypervolume")
    for name, members in document["frontier_by_architecture"].items():
        total = sum(record["architecture"] == name for record in runs)
        area = number(document["hypervolume_by_architecture"][name])
        lines.append(f"{name:<{size}}  {f'{len(members)} of {total}':>19}  {area:>11}")
    if document["left_out"]:
        lines += ["", f"{document['left_out']} trials left out: not finished, or without one of the values"]
    return lines


def _with_axes(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the runs with their values on both axes, which may be no fields of theirs."""
    axes = document["x"], document["y"]
    points = document.get("points", {})
    return [run | dict(zip(axes, points[run["run_id"]], strict=True)) if points else run for run in document["runs"]]


def _columns(x: str, y: str) -> list[Any]:
    """Returns the columns of a run, with x and y among those that never give way and without the mark of the frontier."""
    from dataclasses import replace

    from prolu_tune.cli.tables import RUN_COLUMNS, Column

    columns = [replace(c, weight=0) if c.key in (x, y) else c for c in RUN_COLUMNS if c.key != "on_frontier"]
    missing = [Column(key, key) for key in (x, y) if key not in {column.key for column in columns}]
    return [*columns[:-1], *missing, columns[-1]]


def _python_lines(sweep: "Sweep", record: dict[str, Any]) -> str:
    """Returns the three lines that load a run's SAE, from any folder, and use it."""
    from prolu_tune.results.store import resolve_tracking_uri, without_password

    trial = next(trial for trial in sweep.trials if trial.record["run_id"] == record["run_id"])
    checkpoint = record["checkpoint"]
    if checkpoint and Path(checkpoint).exists():
        reference = repr(checkpoint)
    else:
        parents = {facts.run_id: facts.tracking_uri for facts in sweep.facts}
        uri = parents[trial.tags["mlflow.parentRunId"]]
        elsewhere = uri != resolve_tracking_uri(None, None)
        reference = repr(record["run_id"]) + (f", tracking_uri={without_password(uri)!r}" if elsewhere else "")
    d_in = trial.params.get("sae.d_in", "None")
    hook = trial.params.get("activations.hook_name", "the hook")
    return PYTHON_LINES.format(reference=reference, d_in="d_in" if d_in == "None" else d_in, hook=hook)


def _sweep_of_each(sweep: "Sweep", records: list[dict[str, Any]]) -> list[str] | None:
    """Returns the sweep's name for each record where there are several sweeps."""
    if len(sweep.facts) < 2:
        return None
    names = {trial.record["run_id"]: trial.tags.get("prolu.sweep", "") for trial in sweep.trials}
    return [names[record["run_id"]] for record in records]


def _why_nothing(whole: "Sweep", sweep: "Sweep", x: str, y: str) -> str:
    """Returns why a frontier is empty."""
    if not whole.trials:
        return "no trial has begun"
    if not sweep.trials:
        return f"none of {len(whole.trials)} trials meets the conditions"
    return f"none of {len(sweep.trials)} trials has finished with both {x} and {y}"


def _say_if_mixed(sweep: "Sweep") -> None:
    """Says so where the runs are not about the same activations: their metrics are then no contest."""
    for key in ("activations.model", "activations.hook_name", "activations.dataset"):
        values = sorted({trial.params[key] for trial in sweep.trials if key in trial.params})
        if len(values) > 1:
            print(f"note: these runs differ in {key} ({', '.join(values)}); their metrics do not compare", file=sys.stderr)


def _one_output(as_json: bool, form: str | None) -> None:
    from prolu_tune.errors import InputError

    if as_json and form is not None:
        raise InputError(f"--json and --format {form} are two forms of one output; leave one of them out")


def _print_json(document: dict[str, Any]) -> None:
    from prolu_tune.results.records import to_json

    print(to_json(document))


def _exit_if_empty(runs: list[Any], reason: str) -> None:
    if not runs:
        print(reason, file=sys.stderr)
        raise typer.Exit(1)
