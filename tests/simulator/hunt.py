"""Plants every known bug in turn and looks who catches it."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from simulator.planted import PLANTS, Plant

MOST_SEEDS = 4000
"""A plant that so many seeds do not catch is not caught."""


def hunt(plant: Plant, root: Path, *, first: int = 0, most: int = MOST_SEEDS) -> tuple[int, str] | None:
    """Returns the first seed that catches a plant and what it saw, None if none does."""
    from simulator import campaign

    for name in campaign.SHARES:
        campaign.reference(name, root)  # what is right is found out before the bug is in
    with plant.planted():
        for seed in range(first, first + most):
            if not plant.may_show(*campaign.planned(seed, root)):
                continue
            _, wrong = campaign.run_seed(seed, root)
            if wrong:
                return seed, wrong[0]
    return None


def caught_by_test(plant: Plant) -> bool:
    """Returns whether the plant's test fails with it and passes without."""
    with_it, without = (_run_test(str(plant.test), name) for name in (plant.name, ""))
    return (
        re.search(r"\b[1-9]\d* failed", with_it) is not None
        and re.search(r"\bfailed|\berror", without) is None
        and "passed" in without
    )


def _run_test(test: str, plant: str) -> str:
    """Returns the last line of a run of pytest; `plant_plugin` puts the bug in."""
    environment = os.environ | {"PLANT": plant, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
        "-p",
        "simulator.plant_plugin",
        test,
    ]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    return (done.stdout.strip().splitlines() or [""])[-1]


def _try(plant: Plant) -> tuple[str, bool, str]:
    """Returns a plant's name, whether it was caught, and how."""
    from simulator import campaign

    started = time.monotonic()
    if plant.test is not None:
        caught = caught_by_test(plant)
        return plant.name, caught, f"{plant.test} ({time.monotonic() - started:.0f} s)"
    root = campaign.scratch(abs(hash(plant.name)) % 10**6)
    try:
        found = hunt(plant, root)
        if found is None:
            return plant.name, False, f"not in {MOST_SEEDS} seeds"
        seed, wrong = found
        _, without = campaign.run_seed(seed, root)
    finally:
        campaign.clean(root)
        root.rmdir()
    if without:
        return plant.name, False, f"seed {seed} fails without it too: {without[0][:100]}"
    return plant.name, True, f"seed {seed} ({time.monotonic() - started:.0f} s): {wrong[:110]}"


def hunt_all(*, processes: int) -> int:
    """Plants every bug in turn, prints who caught it, and returns the exit status."""
    import multiprocessing

    caught = 0
    with multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=1) as pool:
        for name, well, how in pool.imap(_try_by_index, range(len(PLANTS)), chunksize=1):
            caught += well
            print(f"{'caught' if well else 'MISSED'}  {name}: {how}", flush=True)
    print(f"caught {caught} of {len(PLANTS)}")
    return 0 if caught == len(PLANTS) else 1


def _try_by_index(index: int) -> tuple[str, bool, str]:
    return _try(PLANTS[index])
