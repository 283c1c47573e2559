"""`evaluate`: metrics of stored autoencoders, measured again or for the first time."""

import math
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
    Seeds,
    Storage,
    TrackingUri,
    Where,
    examples,
    say_next,
    tracked,
)
from prolu_tune.cli.progress import Work
from prolu_tune.results.store import DEFAULT_STORAGE

if TYPE_CHECKING:
    from prolu_tune.results.query import Sweep
    from prolu_tune.results.reevaluate import Outcome, Request

NOTE = (
    "New values go to the runs they belong to; a value that a run holds is compared and never written again. On other data "
    "(--split, --num-tokens, another --dataset) names get a prefix: --prefix eval2 stores eval2.l0, to be asked for by that "
    "name (pareto --x eval2.l0 --y eval2.ce_degradation). Nothing is added to a run whose stored values do not come out "
    "again. Environment: PROLU_STORAGE, PROLU_TRACKING_URI (or MLFLOW_TRACKING_URI), PROLU_EXPERIMENT. Exit codes: 0 done, "
    "1 no finished trial or some could not be evaluated, 2 wrong input, 3 disk or tracking store failed, 130 interrupted; "
    "after 3 and 130 the same command with --only-missing goes on."
)
MOST_COLUMNS = 4
"""Added metrics that the table shows; more are counted."""

Metrics = Annotated[str | None, typer.Option("--metrics", metavar="A,B", help="Only these; default: all.", show_default=False)]
Prefix = Annotated[
    str | None,
    typer.Option("--prefix", metavar="WORD", help="Stores the values as WORD.l0 and so on.", show_default=False),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="DATA",
        help="Other data, or where the same now lie; default: the trials' own.",
        show_default=False,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        "--split", metavar="LOW:HIGH", help="Other rows, as shares of the data, or a hub split's name.", show_default=False
    ),
]
NumTokens = Annotated[
    int | None,
    typer.Option("--num-tokens", metavar="N", help="Another number of held-out tokens.", min=1, show_default=False),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="Where the language model lies now, if it was moved.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Adds the verb of this module."""
    app.command(
        "evaluate",
        help="Recomputes metrics from the stored checkpoints, also those that did not exist when the sweep ran.",
        epilog=examples(
            "prolu-tune evaluate quickstart",
            "prolu-tune evaluate exp3 --metrics magnitude_slope,fvu --only-missing",
            "prolu-tune evaluate exp3 --prefix late --split 0.95:1 --num-tokens 100000",
            note=NOTE,
        ),
    )(evaluate)


def evaluate(
    name: Name,
    metrics: Metrics = None,
    prefix: Prefix = None,
    dataset: Dataset = None,
    split: Split = None,
    num_tokens: NumTokens = None,
    model: Model = None,
    architecture: Architectures = None,
    seed: Seeds = None,
    where: Where = None,
    only_missing: Annotated[
        bool, typer.Option("--only-missing", help="Leaves out runs that hold every metric asked for.")
    ] = False,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    cluster: Cluster = None,
    as_json: Json = False,
) -> None:
    from prolu_tune.results.query import load_sweep
    from prolu_tune.results.records import to_json

    asked = {"prefix": prefix, "model": model, "dataset": dataset, "split": split, "num_tokens": num_tokens}
    names = [part.strip() for part in metrics.split(",")] if metrics is not None else []
    with Work() as work:
        work.show(f"reading {name}")
        sweep = load_sweep(name, tracking_uri=tracked(cluster, tracking_uri), storage=storage)
        sweep = sweep.filter(architecture=architecture or (), seed=seed or (), where=where or ())
        work.show("loading torch and the language model's library")
        from prolu_tune.results.reevaluate import Request, chosen_trials

        request = Request(metrics=names, only_missing=only_missing, **asked)
        outcomes = _evaluated(sweep, request, storage.expanduser().absolute() / "cache", work)
    if as_json:
        document = {"sweep": sweep.name, "prefix": prefix, "metrics": request.names, "runs": [o.record() for o in outcomes]}
        print(to_json(document))
    elif outcomes:
        print("\n".join(_lines(sweep.name, outcomes)))
    _leave(outcomes, nothing_missing=only_missing and bool(sweep.trials) and not chosen_trials(sweep, request))
    say_next(f"prolu-tune report {shlex.quote(name)}", cluster)


def _evaluated(sweep: "Sweep", request: "Request", cache_dir: Path, work: Work) -> "list[Outcome]":
    """Returns what became of all runs; leaves with 130 after Ctrl-C, when passes that ended are stored."""
    from prolu_tune.results.reevaluate import reevaluate

    outcomes: list[Outcome] = []
    try:
        for part in reevaluate(sweep, request, cache_dir=cache_dir, device=_device(), say=work.say, progress=work.show):
            outcomes += part
    except KeyboardInterrupt:
        work.close()
        print(
            f"interrupted; the values of {len(outcomes)} runs are stored. The same command with --only-missing goes on",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    return outcomes


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _leave(outcomes: "list[Outcome]", *, nothing_missing: bool) -> None:
    """Ends with 1 where there was nothing to evaluate, or some run could not be."""
    if not outcomes:
        print("every run holds these metrics" if nothing_missing else "no finished trial meets the conditions", file=sys.stderr)
        raise typer.Exit(0 if nothing_missing else 1)
    troubled = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in troubled:
        print(f"{outcome.trial.label} {outcome.trial.record['run_id']}: {outcome.error}", file=sys.stderr)
    if troubled:
        raise typer.Exit(1)


def _lines(sweep: str, outcomes: "list[Outcome]") -> list[str]:
    """Returns what was added, compared and found different, for people."""
    from prolu_tune.cli.tables import Column, aligned, terminal_width
    from prolu_tune.screen.words import number

    added = list(dict.fromkeys(name for outcome in outcomes for name in outcome.added))
    values = sum(len(outcome.added) for outcome in outcomes)
    same = sum(len(outcome.same) for outcome in outcomes)
    runs = sum(outcome.error is None for outcome in outcomes)
    lines = [f"{sweep}: {runs} of {len(outcomes)} runs evaluated, {values} values added, {same} came out as stored"]
    if added:
        lines += ["", f"added: {', '.join(added)}", ""]
        rows: list[dict[str, Any]] = [outcome.trial.record | outcome.added for outcome in outcomes if outcome.added]
        shown = added[:MOST_COLUMNS]
        columns = [
            Column("architecture", "architecture", right=False),
            Column("l1_coefficient", "l1_coef"),
            Column("seed", "seed", weight=1),
            *(Column(name, name, weight=10 + place if place else 0) for place, name in enumerate(shown)),
            Column("run_id", "run_id", right=False),
        ]
        lines += aligned([_finite(row) for row in rows], columns, width=terminal_width())
    for outcome in outcomes:
        for name, (stored, now) in outcome.different.items():
            lines.append(
                f"differs: {outcome.trial.label} {name} stored {number(stored)}, now {number(now)} (what is stored stays)"
            )
    return lines


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
