"""Arguments and options that several verbs share, so that they read the same everywhere."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from prolu_tune.results.store import DEFAULT_STORAGE

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
    typer.Option(
        "--storage",
        metavar="DIR",
        envvar="PROLU_STORAGE",
        help="Where sweeps, activations and results are kept: a folder; for run also s3:// or gs://.",
    ),
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
Cluster = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        metavar="FILE",
        envvar="PROLU_CLUSTER",
        help="The file that was given to `ray up`: the results of that cluster, through an ssh tunnel.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def complete_names(incomplete: str) -> list[str]:
    """Returns the sweeps of the storage folder that begin so: folder names, since a shell waits for the answer."""
    folder = Path(os.environ.get("PROLU_STORAGE") or DEFAULT_STORAGE) / "sweeps"
    found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    return [name for name in found if name.startswith(incomplete) and "~" not in name]


Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Sweep name or MLflow run id.", autocompletion=complete_names, show_default=False),
]
Names = Annotated[
    list[str],
    typer.Argument(metavar="NAME", help="Sweep names or MLflow run ids.", autocompletion=complete_names, show_default=False),
]
Architectures = Annotated[
    list[str] | None,
    typer.Option("--architecture", metavar="ARCH", help="Only this one, such as prolu_ste+l1; repeatable.", show_default=False),
]
Seeds = Annotated[
    list[int] | None, typer.Option("--seed", metavar="N", help="Only trials of this seed; repeatable.", show_default=False)
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        metavar="CONDITION",
        help="Only trials with, for example, training.lr=3e-4 or 'mse<0.3' (any field, metric, parameter); repeatable.",
        show_default=False,
    ),
]

EXIT_CODES = (
    "Exit codes: 0 done, 1 some trials failed, 2 wrong input, 3 surroundings failed, 130 interrupted; "
    "after 3 and 130 the same command goes on."
)


def tracked(cluster: Path | None, tracking_uri: str | None) -> str | None:
    """Returns the tracking store to read: that of a cluster, if one is named, through a tunnel that ends with this process."""
    if cluster is None:
        return tracking_uri
    from prolu_tune.launch.tracking import tracking_through

    return tracking_through(cluster, tracking_uri)


def say_next(command: str, cluster: Path | None = None) -> None:
    """Prints the command that a person is likely to give next, for the same cluster."""
    flag = "" if cluster is None else f" --cluster {shlex.quote(str(cluster))}"
    print(f"\nnext: {command}{flag}", file=sys.stderr)


def examples(*lines: str, note: str = "") -> str:
    """Returns the end of a verb's help: examples to copy, each on its line, and a note below."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines) + (f"\n\n{note}" if note else "")
