"""One sweep from start to end under seeded faults, and what is to be said of it."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prolu_tune.sweep.local_ray import LONGEST_TEMPORARY
from torture import digest, processes
from torture.proxy import FaultyProxy

REPOSITORY = Path(__file__).parents[2]
PASSING = ("trial", "trial", "node", "raylet", "gcs", "SIGSTOP", "second driver")
"""Faults that a run of the command survives: SIGKILL to a process with that role, and others."""
ENDING = ("driver", "driver", "all", "all", "SIGINT", "SIGTERM")
"""Faults that end a run: SIGKILL to the driver, or to it and all it started; signals."""
KILLS = ("driver", "all", *processes.ROLES)
ATTEMPT_S = 900.0
"""An attempt that takes longer hangs; an undisturbed one takes 20 s on two idle cores, and minutes on busy ones."""
LEAVE_S = 10.0
"""Within this time SIGINT and SIGTERM must have ended the driver."""
ORPHANS_S = 60.0
CLOCK = """
import os, time
step, time_of_day, time_of_day_ns = int(os.environ["PROLU_TORTURE_CLOCK"]), time.time, time.time_ns
time.time = lambda: time_of_day() + step
time.time_ns = lambda: time_of_day_ns() + step * 10**9
"""
"""Sets the clock of every Python process ahead or back; `libfaketime` makes Ray's own code crash (signal 11, at once)."""


@dataclass
class Attempt:
    """One run of the command."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    out: str = ""
    threads: list[threading.Thread] = field(default_factory=list)

    def wait(self, timeout: float) -> int | None:
        """Returns the exit code, or None if it is still running after that time."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        for thread in self.threads:
            thread.join(10)
        return code


class History:
    """A sweep in a storage folder of its own."""

    def __init__(self, folder: Path, space: Path, *, seed: int, server: bool = False, cache: Path | None = None) -> None:
        """Makes the folder; starts an MLflow server behind a proxy where asked.

        Args:
            folder: short, because Ray puts sockets below it; must not exist.
            space: the YAML file.
            seed: decides every fault.
            server: MLflow by HTTP, through the proxy, instead of SQLite.
            cache: a finished storage's activations, to start from.
        """
        assert len(str(folder)) <= LONGEST_TEMPORARY, f"{folder} is too long for Ray's sockets below it"
        self.folder, self.space, self.random = folder, space, random.Random(seed)
        self.name = space.stem
        self.storage = folder / "s"
        self.storage.mkdir(parents=True)
        self.faults: list[str] = []
        self.notes: list[str] = []
        if cache is not None:
            subprocess.run(["cp", "-r", str(cache), str(self.storage / "cache")], check=True)
        self.server: MlflowServer | None = MlflowServer(folder / "m", seed=seed) if server else None

    @property
    def finished(self) -> bool:
        """Whether the sweep has come to its end already."""
        return (self.storage / "sweeps" / self.name / "tracked").exists()

    @property
    def database(self) -> Path:
        """MLflow's SQLite file."""
        return self.server.database if self.server else self.storage / "mlflow.db"

    def start(self, *arguments: str, clock: int = 0, environment: dict[str, str] | None = None) -> Attempt:
        """Starts the command, where asked with further arguments, a clock that many seconds off, or more in its environment."""
        command = [sys.executable, "-m", "prolu_tune.cli.main", "run", str(self.space), "--json"]
        command += ["--storage", str(self.storage)]
        if self.server and "PROLU_TRACKING_URI" not in (environment or {}):
            command += ["--tracking-uri", f"http://127.0.0.1:{self.server.proxy.port}"]
        command += arguments
        environment = os.environ | (environment or {})
        environment |= {
            "PYTHONPATH": str(REPOSITORY),
            "PROLU_TORTURE": str(self.folder),
            "RAY_TMPDIR": str(self.folder),
        }
        if clock:
            (self.folder / "clock").mkdir(exist_ok=True)
            (self.folder / "clock" / "sitecustomize.py").write_text(CLOCK)
            environment |= {
                "PYTHONPATH": f"{self.folder / 'clock'}{os.pathsep}{REPOSITORY}",
                "PROLU_TORTURE_CLOCK": str(clock),
            }
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        attempt = Attempt(process)
        attempt.threads = [threading.Thread(target=_collect, args=(attempt, part), daemon=True) for part in ("out", "err")]
        for thread in attempt.threads:
            thread.start()
        return attempt

    def finish(self) -> Attempt:
        """Runs the command without faults of ours until it ends with 0, as a user would after 3; returns that run.

        Raises:
            AssertionError: if it hangs, or ends otherwise.
        """
        for _ in range(8):
            attempt = self.start()
            code = attempt.wait(ATTEMPT_S)
            if code is None:
                processes.kill_all(attempt.process.pid)
                raise AssertionError(f"the command hangs; its last words: {attempt.lines[-3:]}")
            if code == 0:
                return attempt
            self.notes.append(f"exit {code}: {attempt.lines[-1:]}")
            assert code == 3, f"exit {code} instead of 0: {attempt.lines[-5:]}"
        raise AssertionError(f"eight times exit 3: {self.notes[-1]}")

    def disturb(self, *, num_trials: int) -> None:
        """Runs the command with a few faults at random moments; returns when it has ended.

        Args:
            num_trials: of the sweep; the moments are drawn among the lines that tell of those that are left.
        """
        draw = self.random
        faults = [draw.choice(PASSING) for _ in range(draw.randrange(4))] + (
            [draw.choice(ENDING)] if draw.random() < 0.9 else []
        )
        clock = draw.choice([-1, 1]) * draw.randint(1, 72 * 3600) if draw.random() < 0.1 else 0
        if clock:
            self.faults.append(f"clock {clock} s off")
        left = num_trials - len(list(self.storage.glob("sweeps/*/trials/*/trained.json")))
        attempt = self.start(clock=clock)
        try:
            for fault in faults:
                self._strike(
                    fault, attempt, lines=draw.randrange(2 + (3 + 2 * left) // len(faults)), delay=draw.uniform(0, 1.2)
                )
            self._settle(attempt, faults)
        finally:
            processes.kill_all(attempt.process.pid)
            attempt.process.wait()
        if draw.random() < 0.2:
            self._tear_snapshots()

    def _strike(self, fault: str, attempt: Attempt, *, lines: int, delay: float) -> None:
        """Lets a fault happen some lines and seconds from now, if the command still runs then."""
        pid, at_line, deadline = attempt.process.pid, len(attempt.lines) + lines, time.monotonic() + ATTEMPT_S
        while len(attempt.lines) < at_line and attempt.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(delay)
        if attempt.process.poll() is not None:
            return
        words = attempt.lines[-1][9:60] if attempt.lines else "before its first word"
        if fault in ("driver", "all"):
            _kill(pid) if fault == "driver" else processes.kill_all(pid)
        elif fault in processes.ROLES:
            victims = processes.wait_for_role(pid, fault, within_s=20)
            if not victims:
                return
            self.random.choice(victims).kill()
        elif fault in ("SIGINT", "SIGTERM"):
            started = time.monotonic()
            attempt.process.send_signal(getattr(signal, fault))
            code = attempt.wait(60)
            self.notes.append(f"{fault} took {time.monotonic() - started:.1f} s")
            assert code in (130, 0), f"exit {code} after {fault} at {words!r}, said {attempt.lines[-3:]}"
        elif fault == "SIGSTOP":
            processes.stop_for(pid, self.random.choice([2.0, 5.0, 12.0]))
        elif fault == "second driver":
            self._second_driver(attempt)
        self.faults.append(f"{fault} at {words!r}")

    def _settle(self, attempt: Attempt, faults: list[str]) -> None:
        """Waits for the command's end, which must be one of those that its faults allow."""
        code = attempt.wait(ATTEMPT_S)
        assert code is not None, f"hangs after {self.faults[-3:]}; its last words: {attempt.lines[-3:]}"
        allowed = {"driver": -9, "all": -9, "SIGINT": 130, "SIGTERM": 130}
        if code == 3:
            self.notes.append(f"exit 3 after {faults}: {attempt.lines[-1:]}")
        assert code in (0, 3, *(allowed[fault] for fault in faults if fault in allowed)), (
            f"exit {code} after {self.faults[-3:]}: {attempt.lines[-8:]}"
        )

    def _second_driver(self, first: Attempt) -> None:
        lock = self.storage / "sweeps" / self.name / "lock"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and str(first.process.pid) not in _text(lock):
            if first.process.poll() is not None:
                return
            time.sleep(0.05)
        started = time.monotonic()
        second = self.start()
        code = second.wait(60)
        if first.process.poll() is not None:
            processes.kill_all(second.process.pid)
            return
        self.notes.append(f"second driver refused after {time.monotonic() - started:.1f} s")
        words = second.lines[-1] if second.lines else ""
        assert code == 3, f"the second driver ended with {code}: {words}"
        assert str(first.process.pid) in words, words
        assert socket.gethostname() in words, words

    def _tear_snapshots(self) -> None:
        """Tune's own files, as far as they are in the sweep's folder: cut one, remove the others."""
        found = [path for pattern in ("tuner.pkl", "experiment_state*") for path in self.folder.rglob(pattern)]
        if found:
            self.faults.append("snapshots torn")
        for path in found:
            if self.random.random() < 0.5:
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def result(self, last: Attempt) -> dict[str, str]:
        """Returns the digest after the last run."""
        return digest.digest(self.storage, self.name, database=self.database, records=json.loads(last.out)["runs"])

    def complaints(self, last: Attempt) -> list[str]:
        """Returns what is not as promised besides the digest: rows, processes, files."""
        found = digest.complaints(self.database, self.name, num_trials=len(json.loads(last.out)["runs"]))
        besides = self.server.pids() if self.server else set()
        found += [f"left running: {name}" for name in processes.wait_for_none(self.folder, besides=besides, within_s=ORPHANS_S)]
        sweep = self.storage / "sweeps" / self.name
        left = [*self.folder.glob("prolu-ray-*"), *sweep.rglob("*.tmp"), *sweep.glob("stop"), *sweep.glob("local_ray.json")]
        return found + [f"left lying: {path.relative_to(self.folder)}" for path in left]

    def close(self) -> None:
        """Ends the MLflow server."""
        if self.server:
            self.server.close()


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
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5):
                return process
            time.sleep(0.2)
        raise TimeoutError("the MLflow server does not come up")


@contextlib.contextmanager
def history(folder: Path, space: Path, **settings: Any) -> Iterator[History]:
    """Gives a history, and ends its server afterwards."""
    made = History(folder, space, **settings)
    try:
        yield made
    finally:
        made.close()


def _collect(attempt: Attempt, part: str) -> None:
    if part == "out":
        assert attempt.process.stdout is not None
        attempt.out = attempt.process.stdout.read()
        return
    assert attempt.process.stderr is not None
    for line in attempt.process.stderr:
        attempt.lines.append(line.rstrip())


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
