"""Arguments and options that several verbs share, so that they read the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

SpaceFile = Annotated[Path, typer.Argument(metavar="SPACE.yaml", help="The search space.", show_default=False)]
SweepName = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="Name of the sweep; default: the one in the file.", show_default=False),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Sets a dotted key of the space, such as training.lr=3e-4; repeatable.",
        show_default=False,
    ),
]
Storage = Annotated[
    Path,
    typer.Option("--storage", metavar="DIR", envvar="PROLU_STORAGE", help="Where sweeps, activations and results are kept."),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        envvar=["PROLU_TRACKING_URI", "MLFLOW_TRACKING_URI"],
        help="MLflow server or database; default: SQLite inside the storage folder.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]

EXIT_CODES = (
    "Exit codes: 0 done, 1 some trials failed, 2 wrong input, 3 surroundings failed, 130 interrupted; "
    "after 3 and 130 the same command goes on."
)


def examples(*lines: str, note: str = "") -> str:
    """Returns the end of a verb's help: examples to copy, each on its line, and a note below."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines) + (f"\n\n{note}" if note else "")
