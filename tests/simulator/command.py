"""What `scripts/simulate_faults.py` prints."""

import os
import sys
import time

from simulator import campaign as runs
from simulator.failpoints import FAILPOINTS


def one_seed(seed: int, *, trace: bool) -> int:
    """Runs one seed and returns the exit status."""
    root = runs.scratch(seed)
    try:
        world, wrong = runs.run_seed(seed, root, trace=trace)
    finally:
        runs.clean(root)
        root.rmdir()
    for number, life in enumerate(world.lives, 1):
        print(f"life {number}: {life.ended}{''.join(f'; {text}' for text in life.struck)}")
    print(f"seed {seed}, sweep {world.space.name}: {'; '.join(wrong) or 'every promise kept'}")
    return 1 if wrong else 0


def campaign(first: int, last: int, *, processes: int, least: int = 0) -> int:
    """Runs many seeds, prints the table and returns the exit status."""
    report, started = runs.Report(), time.monotonic()
    shown = started
    told: set[int] = set()
    for report in runs.run_campaign(first, last, processes=processes):
        for seed in sorted(report.failures.keys() - told):
            print(f"seed {seed}: {report.failures[seed][:800]}", file=sys.stderr)
            told.add(seed)
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"{report.seeds} of {last - first} seeds, {len(report.failures)} failed", file=sys.stderr)
    width = max(map(len, FAILPOINTS))
    print(f"{'failpoint':{width}s}  {'passed':>10s}  {'struck':>8s}")
    unknown = sorted(report.passed.keys() - set(FAILPOINTS))
    for name in [*FAILPOINTS, *unknown]:
        print(f"{name:{width}s}  {report.passed[name]:10,d}  {report.hits[name]:8,d}")
    print("faults:", ", ".join(f"{kind} {count:,d}" for kind, count in sorted(report.kinds.items())))
    print("runs of the command:", ", ".join(f"{end} {count:,d}" for end, count in sorted(report.lives.items())))
    rare = [name for name in FAILPOINTS if report.hits[name] < least]
    for name in rare:
        print(f"struck less than {least} times: {name}")
    for name in unknown:
        print(f"not in simulator/failpoints.py: {name}")
    for seed, wrong in sorted(report.failures.items())[:20]:
        print(f"seed {seed}: {wrong[:400]}")
    kept = report.seeds - len(report.failures)
    print(
        f"{kept:,d} of {report.seeds:,d} seeds kept every promise; {sum(report.hits.values()):,d} faults at {len(FAILPOINTS)} "
        f"failpoints, {time.monotonic() - started:.0f} s with {processes} processes on {os.cpu_count()} cores"
    )
    return 1 if report.failures or rare or unknown else 0


def planted(*, processes: int) -> int:
    """Plants every known bug and returns the exit status."""
    from simulator.hunt import hunt_all

    return hunt_all(processes=processes)
