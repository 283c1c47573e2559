"""The entry point: the verbs put together, and errors turned into messages and exit codes."""

import errno
import os
import shutil
import signal
import sys
import threading
from typing import Annotated, Literal

import typer

from prolu_tune import __version__
from prolu_tune.cli import evaluate, export, plan, query, report, run
from prolu_tune.cli.tables import folded
from prolu_tune.errors import InputError, SurroundingsError

ROOT_HELP = """\b
  prolu-tune plan search_spaces/quickstart.yaml   what it would take
  prolu-tune run search_spaces/quickstart.yaml    runs it, or continues it
  prolu-tune pareto quickstart                    L0 against CE degradation

Sweeps of sparse autoencoders over language-model activations, from a search space to a Pareto frontier.
"""
ROOT_NOTE = (
    "Data goes to standard output, talk to standard error. Environment: PROLU_STORAGE, PROLU_TRACKING_URI, PROLU_EXPERIMENT, "
    "NO_COLOR, FORCE_COLOR. A flag wins over the environment, the environment over the file, the file over the default."
)
SHORT_HELP = {
    "plan": "What a sweep would take; runs nothing.",
    "run": "Runs a sweep, or continues it.",
    "cache": "Prepares activations ahead of a sweep.",
    "stop": "Saves and stops a sweep on a cluster.",
    "status": "How far a sweep is, and what failed.",
    "pareto": "The frontier over (L0, CE degradation).",
    "best": "The runs to use, under a limit of L0.",
    "evaluate": "Metrics from stored checkpoints, also new ones.",
    "report": "One page with every plot and table.",
    "export": "An autoencoder as a folder for other tools.",
    "dashboard": "Opens MLflow's own pages.",
}
"""The list of verbs in the root help, in the order in which they are needed; a verb's own help says more."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _root(
    color: Annotated[Literal["auto", "always", "never"], typer.Option("--color", help="Colour on the screen.")] = "auto",
    version: Annotated[bool, typer.Option("--version", help="Prints the version.", callback=_version, is_eager=True)] = False,
) -> None:
    if color != "auto":
        for name in ("NO_COLOR", "FORCE_COLOR"):
            os.environ.pop(name, None)
        os.environ["FORCE_COLOR" if color == "always" else "NO_COLOR"] = "1"


def make_app() -> typer.Typer:
    """Returns the whole command line."""
    app = typer.Typer(
        name="prolu-tune",
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(help=ROOT_HELP, epilog=ROOT_NOTE)(_root)
    run.register(app)
    plan.register(app)
    query.register(app)
    evaluate.register(app)
    report.register(app)
    export.register(app)
    order = list(SHORT_HELP)
    for command in app.registered_commands:
        assert command.name in SHORT_HELP, f"{command.name} has no line in the root help"
        command.short_help = SHORT_HELP[command.name]
    app.registered_commands.sort(key=lambda command: order.index(command.name or ""))
    return app


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and leaves the process with its exit code."""
    # Until a sweep takes care of it, SIGTERM leaves as Ctrl-C does: with 130.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        make_app()(arguments, prog_name="prolu-tune")
    except (InputError, SurroundingsError) as error:
        print(folded(str(error), shutil.get_terminal_size().columns if sys.stderr.isatty() else None), file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(
            f"{error.filename or 'the disk'}: {error.strerror}; make room or mend it, then give the same command again",
            file=sys.stderr,
        )
        sys.exit(SurroundingsError.exit_code)


if __name__ == "__main__":
    main()
