"""Puts a simulated world in place of the real one: Python's modules, Ray, MLflow's client, the disk."""

import contextlib
import functools
import logging
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import optuna

from prolu_tune.results.quiet import quiet_mlflow
from prolu_tune.sweep import mlflow_writer, runner, searcher, signals
from prolu_tune.sweep import trial as trial_module
from simulator.clock import Killed, SimEvent, SimQueue, SimThread, SimTimer, current_process
from simulator.disk import replacements
from simulator.server import Client
from simulator.wire import carry

if TYPE_CHECKING:
    from simulator.world import World


@contextlib.contextmanager
def installed(world: "World") -> Iterator[None]:
    """Puts the simulated world in place of the real one."""
    from simulator import ray_stand_in

    tune = ray_stand_in.Tune(world)
    changes: list[tuple[Any, str, Any]] = [
        *replacements(world.disk),
        *_standard_modules(world),
        (os, "_exit", functools.partial(_exit, world)),
        (os, "getpid", _pid),
        (signals, "signal", SimSignal()),
        (runner, "_run_trials", tune.run_trials),
        (searcher, "_DRIVERS", PerProcess(world.drivers)),
        (trial_module, "train", tune.train),
    ]
    import mlflow

    _quiet()
    changes += [
        (mlflow, "MlflowClient", lambda **_: Client(world.server, functools.partial(carry, world))),
        (optuna.logging, "set_verbosity", lambda level: None),
        (mlflow_writer, "quiet_mlflow", lambda: None),
        (mlflow_writer, "make_database", lambda uri: None),
    ]
    old = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in reversed(old):
            setattr(owner, name, value)


def _standard_modules(world: "World") -> Iterator[tuple[Any, str, Any]]:
    clock = world.clock
    threads = SimpleNamespace(
        Thread=functools.partial(SimThread, clock),
        Timer=functools.partial(SimTimer, clock),
        Event=functools.partial(SimEvent, clock),
        Lock=threading.Lock,
        RLock=threading.RLock,
        current_thread=threading.current_thread,
        main_thread=threading.main_thread,
    )
    queues = SimpleNamespace(Queue=lambda *_: SimQueue(clock), Empty=queue.Empty, Full=queue.Full)
    psutil = SimpleNamespace(
        Process=functools.partial(_processes, world),
        NoSuchProcess=ProcessLookupError,
        pid_exists=functools.partial(_lives, world),
    )
    stand_ins = {"time": world.time, "threading": threads, "queue": queues, "psutil": psutil}
    for module, name in _standard_names():
        yield module, name, stand_ins[name]


def _processes(world: "World") -> Any:
    driver = current_process()
    children = [
        SimpleNamespace(kill=functools.partial(world.end_process, process))
        for process in world.workers
        if process.parent is driver and process.alive
    ]
    return SimpleNamespace(children=lambda recursive=False: children)


def _pid() -> int:
    process = current_process()
    return 1 if process is None else process.pid


def _lives(world: "World", pid: int) -> bool:
    return any(life.process.pid == pid and life.process.alive for life in [*world.lives, *world.extra])


def _exit(world: "World", code: int) -> None:
    process = current_process()
    assert process is not None
    world.clock.kill(process, code)
    world.disk.drop(process)
    raise Killed


@functools.cache
def _standard_names() -> list[tuple[Any, str]]:
    """Returns where the sweep's modules hold modules of the standard library that have a stand-in."""
    modules = [module for name, module in sys.modules.items() if name.startswith("prolu_tune.sweep.")]
    return [(module, name) for module in modules for name in ("time", "threading", "queue", "psutil") if hasattr(module, name)]


@functools.cache
def _quiet() -> None:
    """Does what each start of a driver does for its logs; once for all of them, for it empties every logger's cache."""
    quiet_mlflow()
    optuna.logging.set_verbosity(logging.ERROR)


class SimSignal:
    """Stands in for the module `signal`: handlers belong to a simulated process."""

    def __getattr__(self, name: str) -> Any:
        return getattr(signal, name)

    def signal(self, number: int, handler: Any) -> Any:
        """Sets the handler of the current process and returns the old one."""
        process = current_process()
        handlers = getattr(process, "handlers", {})
        old = handlers.get(number)
        handlers[number] = handler
        return old


class PerProcess(dict):
    """A module's global table, one for each simulated process."""

    def __init__(self, stored: dict[tuple[int, str], Any]) -> None:
        super().__init__()
        self._stored = stored

    def __setitem__(self, key: str, value: Any) -> None:
        self._stored[id(current_process()), key] = value

    def __getitem__(self, key: str) -> Any:
        return self._stored[id(current_process()), key]
