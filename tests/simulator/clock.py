"""Virtual time: processes and their threads as greenlets, woken in an order that the seed alone decides."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet

LONGEST_S = 20_000.0
"""No sweep of the simulator takes nearly as long; one that does waits for what never comes."""


class Killed(BaseException):
    """Unwinds a simulated process that is no more; nothing it does while it unwinds has an effect."""


class DeadlockError(Exception):
    """Everybody waits for something and nothing is going to happen."""


class Process:
    """A simulated process: it may be killed or stopped, with all of its threads."""

    pids = itertools.count(1000)
    """Begins anew with each world: as text they decide how long some files are."""

    def __init__(self, role: str, parent: "Process | None" = None) -> None:
        self.pid = next(self.pids)
        self.role = role
        self.parent = parent
        self.alive = True
        self.exit_code: int | None = None
        self.resumes_at = 0.0
        self.orphaned = False
        self.begun = False
        """Whether a worker has the trial's folder for itself and is at work."""
        self.tasks: list[Task] = []


class Task(greenlet):
    """A thread of a process. `error` is what ended it, `value` what it returned."""

    def __init__(self, process: Process, function: Callable[[], Any], parent: greenlet) -> None:
        super().__init__(self._body, parent)
        self.process = process
        self.function = function
        self.value: Any = None
        self.error: BaseException | None = None
        self.finished = False
        self.wakes = 0
        self.on_end: Callable[[], None] | None = None
        process.tasks.append(self)

    def _body(self) -> None:
        try:
            self.value = self.function()
        except BaseException as error:  # it is looked at by whoever waits for this task
            self.error = error
        self.finished = True
        if self.on_end is not None:
            self.on_end()


class Clock:
    """Runs tasks in virtual time. Equal times are ordered by a draw, so that a seed also decides who goes first."""

    def __init__(self, rng: random.Random) -> None:
        self.now = 0.0
        self.wall_offset = 1.7e9
        self._rng = rng
        self._heap: list[tuple[float, float, int, Task, int]] = []
        self._count = 0
        self._hub = getcurrent()
        self._dying: deque[Task] = deque()
        self._tasks: list[Task] = []

    def spawn(self, process: Process, function: Callable[[], Any], *, delay: float = 0.0) -> Task:
        """Starts a thread of a process."""
        task = Task(process, function, self._hub)
        self._tasks.append(task)
        self._wake(task, delay)
        return task

    def _wake(self, task: Task, delay: float = 0.0) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay, self._rng.random(), self._count, task, task.wakes))

    def sleep(self, seconds: float) -> None:
        """Lets virtual time pass for the current task."""
        task = current_task()
        if not task.process.alive:
            raise Killed
        self._wake(task, max(seconds, 0.0))
        self._hub.switch()

    def park(self, timeout: float | None = None) -> None:
        """Waits until `unpark`, or for `timeout` seconds."""
        task = current_task()
        if not task.process.alive:
            raise Killed
        if timeout is not None:
            self._wake(task, timeout)
        self._hub.switch()

    def unpark(self, task: Task) -> None:
        """Wakes a parked task."""
        self._wake(task)

    def kill(self, process: Process, exit_code: int = -9) -> None:
        """Ends a process at once; its threads unwind without effect before anything else happens."""
        if process.alive:
            process.alive = False
            process.exit_code = exit_code
            self._dying.extend(task for task in process.tasks if not task.finished)

    def end(self) -> None:
        """Ends everything, so that nothing unwinds later, outside of the simulation."""
        for task in self._tasks:
            self.kill(task.process)
        self._bury()

    def pause(self, process: Process, seconds: float) -> None:
        """Stops a process (SIGSTOP) until `seconds` from now."""
        process.resumes_at = max(process.resumes_at, self.now + seconds)

    def run_until(self, done: Callable[[], bool]) -> None:
        """Lets tasks run until `done`.

        Raises:
            DeadlockError: if nothing is left that could happen.
        """
        while True:
            self._bury()
            if done():
                return
            if not self._heap:
                raise DeadlockError("everybody waits")
            if self.now > LONGEST_S:
                raise DeadlockError(f"not done after {LONGEST_S:g} s of virtual time")
            time, _, _, task, wakes = heapq.heappop(self._heap)
            if task.finished or wakes != task.wakes:
                continue
            if task.process.resumes_at > time:
                self._count += 1
                heapq.heappush(self._heap, (task.process.resumes_at, self._rng.random(), self._count, task, wakes))
                continue
            self.now = max(self.now, time)
            task.wakes += 1
            task.switch()

    def _bury(self) -> None:
        while self._dying:
            task = self._dying.popleft()
            if task.finished:
                continue
            if not task:  # it never ran: there is nothing to unwind
                task.finished, task.error = True, Killed()
                if task.on_end is not None:
                    task.on_end()
                continue
            task.throw(Killed())


def current_task() -> Task:
    """Returns the task that runs."""
    task = getcurrent()
    assert isinstance(task, Task), "only simulated processes wait for virtual time"
    return task


def current_process() -> Process | None:
    """Returns the process that runs; None outside of the simulation."""
    task = getcurrent()
    return task.process if isinstance(task, Task) else None


class SimTime:
    """Stands in for the module `time`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def monotonic(self) -> float:
        """Returns virtual seconds; they never go back."""
        return self._clock.now

    perf_counter = monotonic

    def time(self) -> float:
        """Returns virtual wall time, which a clock step moves."""
        return self._clock.now + self._clock.wall_offset

    def sleep(self, seconds: float) -> None:
        """Lets virtual time pass."""
        self._clock.sleep(seconds)

    def strftime(self, form: str) -> str:
        """Returns a stamp of virtual wall time."""
        return f"{self.time():.0f}"


class SimQueue:
    """Stands in for `queue.Queue`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._items: deque[Any] = deque()
        self._waiting: Task | None = None

    def put(self, item: Any) -> None:
        """Adds an item and wakes who waits for one."""
        self._items.append(item)
        if self._waiting is not None:
            self._clock.unpark(self._waiting)
            self._waiting = None

    def get(self) -> Any:
        """Returns the next item, waiting for it."""
        while not self._items:
            self._waiting = current_task()
            self._clock.park()
        return self._items.popleft()

    def empty(self) -> bool:
        """Returns whether nothing waits."""
        return not self._items


class SimThread:
    """Stands in for `threading.Thread`: another task of the current process."""

    def __init__(self, clock: Clock, target: Callable[..., Any], args: tuple[Any, ...] = (), **_: Any) -> None:
        self._clock = clock
        self._function = lambda: target(*args)
        self._task: Task | None = None
        self._delay = 0.0

    def start(self) -> None:
        """Starts the task."""
        process = current_process()
        assert process is not None
        self._task = self._clock.spawn(process, self._function, delay=self._delay)

    def is_alive(self) -> bool:
        """Returns whether it still runs."""
        return self._task is not None and not self._task.finished

    def join(self, timeout: float | None = None) -> None:
        """Waits for its end in small steps of virtual time."""
        assert timeout is not None or self._task is not None
        until = self._clock.now + (timeout if timeout is not None else 1e9)
        while self.is_alive() and self._clock.now < until:
            self._clock.sleep(min(0.5, until - self._clock.now))


class SimTimer(SimThread):
    """Stands in for `threading.Timer`."""

    def __init__(self, clock: Clock, interval: float, function: Callable[..., Any], args: tuple[Any, ...] = ()) -> None:
        super().__init__(clock, self._fire)
        self._delay = interval
        self._call = lambda: function(*args)
        self._cancelled = False
        self.daemon = True

    def _fire(self) -> None:
        if not self._cancelled:
            self._call()

    def cancel(self) -> None:
        """Keeps it from firing."""
        self._cancelled = True


class SimEvent:
    """Stands in for `threading.Event`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._set = False

    def set(self) -> None:
        """Sets it."""
        self._set = True

    def clear(self) -> None:
        """Takes it back."""
        self._set = False

    def is_set(self) -> bool:
        """Returns whether it is set."""
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for it in small steps of virtual time."""
        until = self._clock.now + (timeout if timeout is not None else 1e9)
        while not self._set and self._clock.now < until:
            self._clock.sleep(min(0.5, until - self._clock.now))
        return self._set
