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
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prolu_tune.sweep.local_ray import LONGEST_TEMPORARY
from torture import digest, processes
from torture.server import MlflowServer

REPOSITORY = Path(__file__).parents[2]
PASSING = (*["trial"] * 6, "node", "node", "raylet", "gcs", "worker", "SIGSTOP", "second driver")
"""Faults that a run of the command survives: SIGKILL to a process with that role, and others."""
ENDING = (*["driver"] * 4, *["all"] * 4, "SIGINT", "SIGTERM")
"""Faults that end a run: SIGKILL to the driver, or to it and all it started; signals."""
SERVER_KILL = "mlflow server killed"
KILLED = (*(f"{role} at" for role in ("driver", "all", "trial", "node", "raylet", "gcs")), SERVER_KILL)
"""How the notes of those faults begin that are SIGKILLs; that of an idle `worker` is not counted as one."""
START_S = 20.0
"""About as long as the command takes to its first trial; a share of its runs is ended within it, so while it recovers."""
PAUSES_S = (2.0, 2.0, 5.0, 12.0, 40.0)
"""Of a SIGSTOP; 40 s is more than Optuna's own lock would live."""
ATTEMPT_S = 900.0
"""An attempt that takes longer hangs; an undisturbed one takes 20 s on two idle cores, and minutes on busy ones."""
LEAVE_S = 10.0
"""Within this time SIGINT and SIGTERM must have ended the driver."""
ORPHANS_S = 60.0
CLOCK = """
import os, time
step, late = int(os.environ["PROLU_TORTURE_CLOCK"]), float(os.environ["PROLU_TORTURE_CLOCK_LATE"])
time_of_day, time_of_day_ns, began = time.time, time.time_ns, time.monotonic()
def off():
    return step if time.monotonic() - began >= late else 0
time.time = lambda: time_of_day() + off()
time.time_ns = lambda: time_of_day_ns() + off() * 10**9
"""
"""Steps the clock of every Python process ahead or back; `libfaketime` makes Ray's own code crash (signal 11, at once)."""


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

    def start(self, *arguments: str, clock: tuple[int, float] = (0, 0.0), environment: dict[str, str] | None = None) -> Attempt:
        """Starts the command.

        Args:
            arguments: further ones.
            clock: how many seconds the clock steps, and how long after a process started.
            environment: further variables.
        """
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
        if clock[0]:
            (self.folder / "clock").mkdir(exist_ok=True)
            (self.folder / "clock" / "sitecustomize.py").write_text(CLOCK)
            environment |= {
                "PYTHONPATH": f"{self.folder / 'clock'}{os.pathsep}{REPOSITORY}",
                "PROLU_TORTURE_CLOCK": str(clock[0]),
                "PROLU_TORTURE_CLOCK_LATE": str(clock[1]),
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

    def disturb(self) -> None:
        """Runs the command with faults at random moments; returns when it has ended.

        One run in four is ended while it still starts, that is recovers; the others meet many faults while trials run.
        """
        draw = self.random
        early = draw.random() < 0.25
        faults = [] if early else [draw.choice(PASSING) for _ in range(draw.randint(3, 9))]
        if self.server and faults:
            faults[draw.randrange(len(faults))] = SERVER_KILL
        if early or draw.random() < 0.9:
            faults.append(draw.choice(ENDING))
        clock = (0, 0.0)
        if draw.random() < 0.1:
            clock = (draw.choice([-1, 1]) * draw.randint(1, 72 * 3600), draw.choice([0.0, draw.uniform(0, 60)]))
            self.faults.append(f"clock {clock[0]} s off after {clock[1]:.0f} s")
        attempt = self.start(clock=clock)
        try:
            if not early and draw.random() < 0.8:
                self.wait_for(attempt, "started ")
            for fault in faults:
                self.strike(fault, attempt, delay=draw.uniform(0, START_S if early else 4.0))
            self._settle(attempt, faults)
        finally:
            processes.kill_all(attempt.process.pid)
            attempt.process.wait()
        if draw.random() < 0.2:
            self._tear_snapshots()

    def wait_for(self, attempt: Attempt, words: str) -> None:
        """Waits until the command says something, or ends."""
        deadline = time.monotonic() + ATTEMPT_S
        while attempt.process.poll() is None and time.monotonic() < deadline:
            if any(words in line for line in attempt.lines):
                return
            time.sleep(0.02)

    def strike(self, fault: str, attempt: Attempt, *, delay: float) -> None:
        """Lets a fault happen some seconds from now, if the command still runs then, and once there is such a process."""
        pid = attempt.process.pid
        time.sleep(delay)
        if attempt.process.poll() is not None:
            return
        words = attempt.lines[-1][9:60] if attempt.lines else "before its first word"
        if fault in ("driver", "all"):
            _kill(pid) if fault == "driver" else processes.kill_all(pid)
        elif fault in processes.ROLES:
            victims = processes.wait_for_role(pid, fault, within_s=60)
            if not victims:
                return
            try:
                self.random.choice(victims).kill()
            except processes.psutil.NoSuchProcess:
                return
        elif fault in ("SIGINT", "SIGTERM"):
            started = time.monotonic()
            attempt.process.send_signal(getattr(signal, fault))
            code = attempt.wait(60)
            self.notes.append(f"{fault} took {time.monotonic() - started:.1f} s")
            # Python itself still starts: the signal's own end.
            unprepared = (-int(getattr(signal, fault)),) if not attempt.lines or "started again" in words else ()
            assert code in (130, 0, *unprepared), f"exit {code} after {fault} at {words!r}, said {attempt.lines[-3:]}"
        elif fault == "SIGSTOP":
            processes.stop_for(pid, self.random.choice(PAUSES_S))
        elif fault == "second driver":
            self._second_driver(attempt)
        elif fault == SERVER_KILL:
            assert self.server is not None
            self.server.kill()
            self.faults.append(SERVER_KILL)
            return
        self.faults.append(f"{fault} at {words!r}")

    def _settle(self, attempt: Attempt, faults: list[str]) -> None:
        """Waits for the command's end, which must be one of those that its faults allow."""
        code = attempt.wait(ATTEMPT_S)
        assert code is not None, f"hangs after {self.faults[-3:]}; its last words: {attempt.lines[-3:]}"
        allowed = {"driver": (-9,), "all": (-9,), "SIGINT": (130,), "SIGTERM": (130,)}
        if not attempt.lines:  # Python itself had not come up, nobody was there to answer the signal
            allowed |= {"SIGINT": (130, -2), "SIGTERM": (130, -15)}
        if code == 3:
            self.notes.append(f"exit 3 after {faults}: {attempt.lines[-1:]}")
        assert code in (0, 3, *(code for fault in faults for code in allowed.get(fault, ()))), (
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
