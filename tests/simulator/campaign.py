"""Many seeds: what came out, and how often a fault struck at each failpoint."""

import gc
import multiprocessing
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulator import checker, faults
from simulator.failpoints import FAILPOINTS
from simulator.spaces import SPACES
from simulator.world import ViolationError, World, clean

SHARES = {"grid": 5, "troubled": 5, "wide": 1, "coverage": 1}
"""How often each space is drawn: a coverage sweep costs four times a grid."""
_reference: dict[str, tuple[dict[str, Any], Counter[str]]] = {}


@dataclass
class Report:
    """What a range of seeds gave."""

    seeds: int = 0
    passed: Counter[str] = field(default_factory=Counter)
    """How often each failpoint was passed."""
    hits: Counter[str] = field(default_factory=Counter)
    """How often a fault struck there."""
    kinds: Counter[str] = field(default_factory=Counter)
    lives: Counter[str] = field(default_factory=Counter)
    """How runs of the command ended."""
    failures: dict[int, str] = field(default_factory=dict)

    def add(self, other: "Report") -> None:
        """Adds what other seeds gave."""
        self.seeds += other.seeds
        for name in ("passed", "hits", "kinds", "lives"):
            getattr(self, name).update(getattr(other, name))
        self.failures |= other.failures


def scratch(part: int) -> Path:
    """Returns a folder in memory for one process."""
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(os.environ.get("TMPDIR", "/tmp"))
    return base / f"prolu-simulator-{os.getpid()}-{part}"


def reference(name: str, root: Path) -> tuple[dict[str, Any], Counter[str]]:
    """Returns the digest of the undisturbed sweep, checked like any other, and how often it passes each failpoint."""
    if name not in _reference:
        clean(root)
        world = World(0, SPACES[name], root, [])
        world.run()
        wrong = checker.broken_promises(world)
        if wrong:
            raise ViolationError(f"the undisturbed sweep {name}: {'; '.join(wrong)}")
        _reference[name] = checker.digest(world), world.passed
    return _reference[name]


def planned(seed: int, root: Path) -> tuple[str, list[faults.Fault]]:
    """Returns the sweep of a seed and the faults it is going to meet."""
    rng = random.Random(f"plan {seed}")
    name = rng.choices(list(SHARES), list(SHARES.values()))[0]
    return name, faults.plan(rng, FAILPOINTS, reference(name, root)[1])


def run_seed(seed: int, root: Path, *, trace: bool = False) -> tuple[World, list[str]]:
    """Returns the world of a seed after its end, and every promise that was broken in it."""
    name, plan = planned(seed, root)
    expected, _ = reference(name, root)
    clean(root)
    world = World(seed, SPACES[name], root, plan, trace=trace)
    try:
        world.run()
    except ViolationError:
        return world, list(world.violations)
    try:
        return world, [*checker.differences(expected, checker.digest(world)), *checker.broken_promises(world)]
    except (ValueError, LookupError, OSError, TypeError) as error:
        return world, [f"what is left cannot be read: {type(error).__name__}: {error}"]


def run_seeds(seeds: Iterable[int], root: Path) -> Report:
    """Returns what these seeds gave."""
    report = Report()
    for seed in seeds:
        world, wrong = run_seed(seed, root)
        report.seeds += 1
        report.passed.update(world.passed)
        report.hits.update(world.hits)
        report.kinds.update(world.kinds)
        report.lives.update(life.ended for life in [*world.lives, *world.extra])
        if wrong:
            lives = " | ".join(", ".join([life.ended, *life.struck]) for life in world.lives)
            again, still_wrong = run_seed(seed, root)
            same = "the same again" if again.fingerprint == world.fingerprint else "NOT the same again"
            report.failures[seed] = f"{'; '.join(wrong)[:2000]} ({lives}; {same}, {len(still_wrong)} broken)"
    return report


def _work(job: tuple[int, int, int]) -> Report:
    first, last, part = job
    root = scratch(part)
    gc.disable()  # a simulated world is one big cycle; looking for it now and then is enough
    try:
        return run_seeds(range(first, last), root)
    finally:
        gc.enable()
        gc.collect()
        clean(root)
        root.rmdir()


def run_campaign(first: int, last: int, *, processes: int = 1, at_once: int = 50) -> Iterator[Report]:
    """Yields the report so far after each few seeds."""
    gc.freeze()
    total = Report()
    jobs = [(start, min(start + at_once, last), start) for start in range(first, last, at_once)]
    if processes == 1:
        for job in jobs:
            total.add(_work(job))
            yield total
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for report in pool.imap_unordered(_work, jobs):
            total.add(report)
            yield total
