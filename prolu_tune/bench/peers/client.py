"""A measurement in the other libraries' environment, as a process that answers lines; so both sides take turns in one run."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prolu_tune.errors import InputError, SurroundingsError

REPOSITORY = Path(__file__).resolve().parents[3]
PYTHON = REPOSITORY / ".venv-peers" / "bin" / "python"


def check_installed() -> None:
    """Checks that the other libraries' environment is there.

    Raises:
        InputError: if it is not, with what to do.
    """
    if not PYTHON.exists():
        raise InputError(
            f"SAELens and dictionary_learning are measured in {PYTHON.parents[1]}, which is not there; "
            "install it with make peers (2 GB), or measure without --peers"
        )


class Peer:
    """A script of this folder in the other libraries' Python; prints a line of JSON when ready, and one per line it is sent."""

    def __init__(self, script: str, arguments: Sequence[str], *, threads: int) -> None:
        """Starts the process and waits until it is ready.

        Args:
            script: a file of this folder.
            arguments: its command line.
            threads: for OMP_NUM_THREADS; the script sets torch's.

        Raises:
            InputError: if the environment is not installed.
            SurroundingsError: if the process ends instead of answering.
        """
        check_installed()
        self.name = script
        quiet = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(  # noqa: S603  # a script of this folder
            [str(PYTHON), "-u", str(Path(__file__).parent / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **quiet, "OMP_NUM_THREADS": str(threads)},
        )
        self.ready = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns the process's answer to a request.

        Raises:
            SurroundingsError: if it ends instead of answering.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # What the libraries print themselves is passed over.
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        _, errors = self._process.communicate()
        last = (errors.strip().splitlines() or ["nothing was printed"])[-1]
        raise SurroundingsError(f"{self.name} ended instead of answering: {last}")
