"""One seed: a sweep, lived through by as many drivers as it takes, with the faults of the seed's plan."""

import errno
import functools
import itertools
import random
import shutil
import signal
import sys
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.search.space import SearchSpace
from prolu_tune.sweep import runner
from simulator import faults
from simulator.clock import (
    Clock,
    DeadlockError,
    Killed,
    Process,
    SimTime,
    Task,
    current_process,
    current_task,
)
from simulator.disk import Disk, Strike
from simulator.installed import installed
from simulator.quiet_screen import QuietScreen
from simulator.server import Server

MAX_LIVES = 30
RESUMABLE = (3, 130)


class ViolationError(Exception):
    """The promise was broken."""


@dataclass
class Life:
    """One run of the command."""

    process: Process
    task: Task
    screen: QuietScreen
    struck: list[str] = field(default_factory=list)
    ended: str = "running"


class World:
    """Everything outside of the code under test, and what it saw of it."""

    def __init__(self, seed: int, space: SearchSpace, root: Path, plan: list[faults.Fault], *, trace: bool = False) -> None:
        self.seed = seed
        self.space = space
        self.root = root
        self.plan = list(plan)
        self.rng = random.Random(f"world {seed}")
        self.fault_rng = random.Random(f"faults {seed}")
        Process.pids = itertools.count(1000)
        self.clock = Clock(random.Random(f"clock {seed}"))
        self.time = SimTime(self.clock)
        self.disk = Disk(root, self._disk_effect, self.settled)
        self.server = Server(root / "artifacts", lambda: int(self.time.time() * 1000))
        self.passed: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.violations: list[str] = []
        self.lives: list[Life] = []
        self.extra: list[Life] = []
        self.workers: list[Process] = []
        self.drivers: dict[tuple[int, str], Any] = {}
        self.at_once = self.rng.choice((1, 2, 3))
        self.full_until_restart = False
        self.away_until = -1.0
        self.after: str | None = None
        self.acknowledged: dict[int, str] = {}
        self.checkpoints: dict[int, int] = {}
        self.steps_taken: Counter[int] = Counter()
        self.wasted = 0
        self.outcome: Any = None
        self.fingerprint = 0
        """Of all effects and their times: equal for equal seeds."""
        self._trace = trace

    # -- what others tell

    def say(self, text: str) -> None:
        """Writes a line of the trace."""
        if self._trace:
            process = current_process()
            print(f"{self.clock.now:9.3f} {process.role if process else 'world':8s} {text}", file=sys.__stderr__)

    def violation(self, text: str) -> None:
        """Takes note that the promise was broken."""
        self.say(f"VIOLATION {text}")
        self.violations.append(text)

    # -- failpoints

    def effect(self, name: str) -> str | None:
        """Counts an effect about to happen; returns the kind of fault that strikes there, if one does."""
        self.passed[name] += 1
        self.fingerprint = zlib.crc32(f"{self.clock.now} {name}".encode(), self.fingerprint)
        self.say(name)
        if not self.plan:
            return None
        fault = self.plan[0]
        if fault.target is not None and fault.target != name:
            return None
        fault.occurrence -= 1
        if fault.occurrence > 0:
            return None
        self.plan.pop(0)
        kind = fault.kind or self.fault_rng.choice(faults.kinds_at(name))
        self.hits[name] += 1
        self.kinds[kind] += 1
        if self.lives:
            self.lives[-1].struck.append(f"{kind} at {name}")
        self.say(f"*** {kind}")
        return kind

    def _disk_effect(self, operation: str, kind: str, path: str) -> Strike | None:
        process = current_process()
        if process is None:
            return None
        if self.full_until_restart and operation in ("write", "create", "mkdir"):
            return Strike(errno.ENOSPC, self.fault_rng.random())
        struck = self.effect(f"{process.role}: {operation} {kind}")
        if struck is None:
            return None
        if struck.startswith("error "):
            return Strike(int(struck.split()[1]), self.fault_rng.random())
        if struck == "disk full":
            self.full_until_restart = True
            return Strike(errno.ENOSPC, self.fault_rng.random())
        if struck.endswith("halfway"):
            self.after = struck.replace("halfway", "now")
            return Strike(-1, self.fault_rng.random())
        self.happen(struck)
        return None

    def settled(self) -> None:
        """Is told after each effect."""
        if self.after is not None:
            struck, self.after = self.after, None
            self.happen(struck)

    def happen(self, kind: str) -> None:
        """Lets a fault that is not an error code happen to the process that runs."""
        process = current_process()
        assert process is not None
        if kind.endswith("after"):
            self.after = kind.replace("after", "now")
            return
        if kind.startswith("power"):
            self.cut_power()
            raise Killed
        if kind.startswith("kill driver"):
            self.kill_driver()
        elif kind.startswith(("kill", "worker lost")):
            self.end_process(process)
            raise Killed
        elif kind == "pause":
            self._pause(process)
        elif kind == "signal":
            self._signal()
        elif kind == "second driver":
            self.start_second()
        elif kind == "clock step":
            self.clock.wall_offset += self.fault_rng.choice((-86400.0, -3600.0, -30.0, 30.0, 86400.0))
        if not process.alive:
            raise Killed  # a worker may be ended along with its driver

    def end_process(self, process: Process) -> None:
        """SIGKILL."""
        self.clock.kill(process)
        self.disk.drop(process)
        if process.role == "driver":
            self._orphan(process)

    def kill_driver(self) -> None:
        """SIGKILL of the driver, from outside it."""
        driver = self.lives[-1].process
        if driver.alive:
            self.end_process(driver)

    def _orphan(self, driver: Process) -> None:
        """A dead driver's workers die when Ray notices: at once, or a little later. One that has not begun never begins."""
        later = self.fault_rng.choice((0.0, 1.0, 3.0))
        for process in self.workers:
            if process.parent is driver and process.alive:
                if later == 0.0 or not process.begun:
                    self.end_process(process)
                else:
                    process.orphaned = True
                    reaper = Process("reaper")
                    self.clock.spawn(reaper, functools.partial(self.end_process, process), delay=later)

    def cut_power(self) -> None:
        """Everything stops; the disk keeps what it promised to keep."""
        for process in [*(life.process for life in [*self.lives, *self.extra]), *self.workers]:
            self.clock.kill(process)
            self.disk.drop(process)
        self.disk.cut_power(self.fault_rng)

    def _pause(self, process: Process) -> None:
        """SIGSTOP and, some time later, SIGCONT; meanwhile somebody may start the command again."""
        seconds = self.fault_rng.choice(faults.PAUSES_S)
        self.clock.pause(process, seconds)
        if process.role == "driver" and self.fault_rng.random() < 0.5:
            self.start_second(delay=seconds / 2)
        self.clock.sleep(0.0)

    def _signal(self) -> None:
        """SIGINT or SIGTERM, at the driver's main thread."""
        life = self.lives[-1]
        handlers = getattr(life.process, "handlers", {})
        handler = handlers.get(self.fault_rng.choice((signal.SIGINT, signal.SIGTERM)))
        if handler is None or not life.process.alive:
            return
        if current_task() is life.task:
            handler(signal.SIGTERM, None)
        else:
            self.clock.spawn(life.process, lambda: handler(signal.SIGTERM, None))

    # -- lives

    def start(self, *, delay: float = 0.0) -> Life:
        """Runs the command in a new process."""
        process = Process("driver")
        process.handlers = {}  # type: ignore[attr-defined] # kept where the process is
        screen = QuietScreen(self)
        task = self.clock.spawn(
            process,
            lambda: runner.run_sweep(self.space, storage=self.root, tracking_uri="sqlite:///simulated", screen=screen),
            delay=delay,
        )
        return Life(process, task, screen)

    def start_second(self, delay: float = 0.0) -> None:
        """Somebody runs the command a second time."""
        self.extra.append(self.start(delay=delay))

    def run(self) -> None:
        """Runs the command again and again until the sweep is done.

        Raises:
            ViolationError: if the promise was broken.
        """
        with installed(self):
            for _ in range(MAX_LIVES):
                planned = len(self.plan)
                self.full_until_restart = False
                life = self.start()
                self.lives.append(life)
                self.say(f"=== life {len(self.lives)}")
                try:
                    self.clock.run_until(lambda life=life: life.task.finished and all(e.task.finished for e in self.extra))
                except DeadlockError as error:
                    self.violation(f"deadlock: {error}")
                    break
                self._look_at(life)
                for extra in self.extra:
                    self._look_at(extra, second=True)
                self._bury_workers(life)
                if self.violations or life.ended == "done":
                    break
                if len(self.plan) == planned and self.plan:
                    self.plan.pop(0)  # it found no place to strike
                self.clock.run_until(self._waited(self.rng.choice((0.0, 0.2, 5.0))))
            else:
                self.violation(f"not done after {MAX_LIVES} lives")
            self.clock.run_until(self._waited(10.0))
            if not self.violations and (self.extra or self.seed % 4 == 0):
                self._run_once_more()
            self.clock.end()
        if self.violations:
            raise ViolationError("; ".join(self.violations))

    def _run_once_more(self) -> None:
        """A finished sweep's command returns at once; it also removes what a driver killed while it was refused has left."""
        self.plan.clear()
        self.away_until = -1.0
        steps, records = sum(self.steps_taken.values()), self.outcome.records
        life = self.start()
        self.clock.run_until(lambda: life.task.finished)
        self._look_at(life, second=True)
        if life.ended != "done" or sum(self.steps_taken.values()) != steps or self.outcome.records != records:
            self.violation(f"the command on the finished sweep: {life.ended}")

    def _waited(self, seconds: float) -> Callable[[], bool]:
        task = self.clock.spawn(Process("nobody"), lambda: None, delay=seconds)
        return lambda: task.finished

    def _bury_workers(self, life: Life) -> None:
        """Ray is shut down with its driver, unless the driver was killed: then see `_orphan`."""
        if life.process.exit_code == 0:
            for process in self.workers:
                if process.parent is life.process and process.alive:
                    self.end_process(process)

    def _look_at(self, life: Life, *, second: bool = False) -> None:
        """Judges how a run of the command ended, and ends its process."""
        task, process = life.task, life.process
        was_alive = process.alive
        if was_alive:
            self.clock.kill(process, 0)
            self.disk.drop(process)
        if life.ended != "running":
            return
        if isinstance(task.error, Killed):
            life.ended = "killed" if process.exit_code != 130 else "interrupted"
        elif isinstance(task.error, SurroundingsError):
            life.ended = "refused" if "another prolu-tune runs this sweep" in str(task.error) else "surroundings"
        elif task.error is not None:
            life.ended = "error"
            last = traceback.extract_tb(task.error.__traceback__)[-3:]
            where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(last))
            self.violation(f"traceback: {type(task.error).__name__}: {task.error} ({where})")
        else:
            code = task.value.exit_code
            life.ended = {0: "done", 1: "done", 3: "surroundings", 130: "interrupted"}.get(code, f"exit {code}")
            if code == 3 and not any(note in (task.value.message or "") for note in life.screen.notes):
                self.violation(f"the command left with 3 and did not say why: {task.value.message}")
            if code in (0, 1):
                self.outcome = task.value
        self.say(f"=== ended: {life.ended} {task.error or ''}")
        if not second and not life.struck and life.ended != "done" and self.away_until < 0 and not self._rival():
            self.violation(f"ended with {life.ended!r} although nothing happened to it: {task.error or task.value}")

    def _rival(self) -> bool:
        return any(extra.ended in ("running", "done", "surroundings", "killed", "interrupted") for extra in self.extra)


def clean(root: Path) -> None:
    """Empties a folder of an earlier simulation."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)


__all__ = ["InputError", "Life", "ViolationError", "World", "clean"]
