"""MLflow's own UI on a tracking store, bound to this machine."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser

from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.results.quiet import QUIET_ENVIRONMENT
from prolu_tune.results.store import open_store, without_password

HOST = "127.0.0.1"
START_S = 120.0
"""How long the server may take until it answers."""


def open_dashboard(tracking_uri: str, *, port: int, browser: bool) -> int:
    """Returns the exit code once the UI was left with Ctrl-C; of a store that is a server already, at once.

    Args:
        tracking_uri: The store; it must exist.
        port: On 127.0.0.1; 0 for a free one.
        browser: Whether to open one.

    Raises:
        InputError: if there is no such store, or the port is taken.
        SurroundingsError: if the UI does not come up.
    """
    if tracking_uri.startswith(("http://", "https://")):
        print(f"{without_password(tracking_uri)} is a server with a UI of its own: open it in a browser", file=sys.stderr)
        if browser:
            webbrowser.open(tracking_uri)
        return 0
    open_store(tracking_uri)
    port = _free_port(port)
    address = f"http://{HOST}:{port}"
    # In the environment, not among the arguments: a database's URI may hold a password.
    environment = os.environ | QUIET_ENVIRONMENT | {
        "MLFLOW_BACKEND_STORE_URI": tracking_uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }  # fmt: skip
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", f"{HOST}:{port},localhost:{port}", "--uvicorn-opts", "--log-level warning"]
    print(f"starting MLflow's UI on {address}", file=sys.stderr)
    # A terminated parent must not leave the server behind: `finally` runs on SystemExit, not on SIGTERM.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)  # noqa: S603  our own interpreter
    try:
        _wait_until_up(server, address)
        print(f"MLflow's UI: {address} (Ctrl-C ends it)", file=sys.stderr)
        if browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait()


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} of {HOST} is taken ({error.strerror}); give another with --port, or --port 0"
            ) from error
        return probe.getsockname()[1]


def _wait_until_up(server: "subprocess.Popen[bytes]", address: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SurroundingsError(f"MLflow's UI ended at once with code {server.returncode}; its words stand above")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):  # noqa: S310  our own loopback address
                return
        except OSError:
            time.sleep(0.2)
    raise SurroundingsError(f"MLflow's UI did not answer on {address} within {START_S:.0f} s")
