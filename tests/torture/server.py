"""A real MLflow server behind the faulty proxy, that can be killed and comes back."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from torture import processes
from torture.proxy import FaultyProxy

UP_S = 900.0
"""Within this time the server answers, also on a machine with a hundred other processes at work; 5 s on an idle one."""


class MlflowServer:
    """A real MLflow server on loopback behind a faulty proxy."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        """Starts the server and waits until it answers."""
        folder.mkdir()
        self.folder, self.database = folder, folder / "mlflow.db"
        self._port = _free_port()
        self._process = self._start()
        self.proxy = FaultyProxy(self._port, seed=seed)

    def kill(self) -> None:
        """Kills the server with all its workers and starts it again."""
        self._end()
        self._process = self._start()

    def pids(self) -> set[int]:
        """Returns its processes."""
        with contextlib.suppress(processes.psutil.NoSuchProcess):
            process = processes.psutil.Process(self._process.pid)
            return {process.pid, *(child.pid for child in process.children(recursive=True))}
        return set()

    def close(self) -> None:
        """Ends it for good."""
        self.proxy.close()
        self._end()

    def _end(self) -> None:
        processes.kill_all(self._process.pid)
        self._process.wait()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.database}", "--artifacts-destination", str(self.folder / "a")]
        command += ["--allowed-hosts", "*", "--uvicorn-opts", "--log-level error"]
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + UP_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5):
                return process
            time.sleep(0.2)
        processes.kill_all(process.pid)
        process.wait()
        raise TimeoutError("the MLflow server does not come up")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
