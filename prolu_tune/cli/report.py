"""`report`: one page that shows what a sweep found."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prolu_tune.cli.options import Cluster, Json, Name, Storage, TrackingUri, examples, tracked
from prolu_tune.cli.progress import Work
from prolu_tune.results.store import DEFAULT_STORAGE

if TYPE_CHECKING:
    from prolu_tune.report.build import Report
    from prolu_tune.results.query import Sweep

ENVIRONMENT = (
    "Environment: PROLU_STORAGE, PROLU_TRACKING_URI (or MLFLOW_TRACKING_URI), PROLU_EXPERIMENT. "
    "Exit codes: 0 done, 1 no trial has begun, 2 wrong input, 3 disk or tracking store failed."
)


def register(app: typer.Typer) -> None:
    """Adds the verb of this module."""
    app.command(
        "report",
        help="Writes one self-contained page with the plots, tables and findings of a sweep; it opens offline.",
        epilog=examples(
            "prolu-tune report quickstart -o report.html",
            "prolu-tune report exp3 -o exp3.html --figures figures/",
            "prolu-tune report exp3 --tracking-uri http://tracking:5000 --no-log",
            note=f"A running sweep can be reported on; the page then shows what has finished. {ENVIRONMENT}",
        ),
    )(report)


def report(
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the page goes.")] = Path("report.html"),
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="DIR", help="Also writes every plot as SVG and PDF.", show_default=False),
    ] = None,
    log: Annotated[bool, typer.Option("--log/--no-log", help="Logs the page on the sweep's MLflow run.")] = True,
    storage: Storage = DEFAULT_STORAGE,
    tracking_uri: TrackingUri = None,
    cluster: Cluster = None,
    as_json: Json = False,
) -> None:
    from prolu_tune.errors import InputError
    from prolu_tune.results.query import load_sweep

    if output.is_dir():
        raise InputError(f"--output {output} is a folder; give the name of a file, such as {output / 'report.html'}")
    if figures is not None and figures.exists() and not figures.is_dir():
        raise InputError(f"--figures {figures} is a file; give a folder")
    sweep = load_sweep(name, tracking_uri=tracked(cluster, tracking_uri), storage=storage)

    from prolu_tune.results.records import to_json

    with Work() as work:
        made, written = _write(sweep, output, figures, work)
        if log:
            work.show("logging the page")
        logged = log and _log(sweep, output, made.html)
    size = len(made.html.encode())
    if as_json:
        document = {
            "sweep": sweep.name,
            "run_id": sweep.run_id,
            "report": str(output),
            "bytes": size,
            "figures": [str(path) for path in written],
            "logged": logged,
            "findings": [
                {"number": finding.number, "claim": finding.claim, "verdict": finding.verdict} for finding in made.findings
            ],
            "runs": sweep.records,
        }
        typer.echo(to_json(document))
    else:
        typer.echo(str(output))
    finished = f"{len(made.data.finished)} of {len(made.data.rows)} trials finished"
    print(f"{output}: {finished}, {len(made.plots)} plots, {size / 1e6:.2f} MB", file=sys.stderr)
    if not made.data.rows:
        print("no trial has begun", file=sys.stderr)
        raise typer.Exit(1)


def _write(sweep: "Sweep", output: Path, figures: Path | None, work: Work) -> "tuple[Report, list[Path]]":
    """Returns the report, written, and the files of its figures."""
    from prolu_tune.durable import replace_file
    from prolu_tune.report.build import build_report
    from prolu_tune.report.collect import collect

    work.show("reading courses of training")
    data = collect(sweep)
    work.show("drawing")
    made = build_report(data)
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, [made.html.encode()])
    if figures is None:
        return made, []
    from prolu_tune.report.figures import write_figures

    work.show("writing figures")
    return made, write_figures(made, figures)


def _log(sweep: "Sweep", output: Path, html: str) -> bool:
    """Puts the page on the sweep's run as report/report.html; a store that does not take it costs a line, not the page."""
    import tempfile

    from mlflow.exceptions import MlflowException

    from prolu_tune.errors import SurroundingsError
    from prolu_tune.results.store import open_store, store_errors

    facts = sweep.facts[0]
    try:
        with store_errors(facts.tracking_uri), tempfile.TemporaryDirectory(prefix="prolu-report-") as folder:
            page = Path(folder) / "report.html"
            page.write_text(html, encoding="utf-8")
            open_store(facts.tracking_uri).log_artifact(facts.run_id, str(page), "report")
    except (SurroundingsError, MlflowException, OSError) as error:
        print(f"{output} is written, but MLflow did not take it ({str(error).splitlines()[0][:200]})", file=sys.stderr)
        return False
    return True
