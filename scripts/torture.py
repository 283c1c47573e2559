"""Kills real sweeps over and over and compares what they end in with an undisturbed run; `--help` says how.

Each history is one sweep in a fresh storage folder: several runs of the same command, each with faults at seeded
moments, then the same command until it ends. Results are appended to a counter file, one JSON line per fault.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from torture import digest  # noqa: E402  its folder is on the path only now
from torture.history import KILLED, History, history  # noqa: E402

SPACES = REPOSITORY / "tests" / "torture" / "spaces"
DRAWN = ("long", "long", "coverage")


@dataclass(frozen=True)
class Reference:
    """What a sweep ends in when nothing disturbs it."""

    digest: dict[str, str]
    cache: Path
    """Its activations."""


@dataclass
class Totals:
    """What was counted so far, and the next seed; shared by the threads that run histories."""

    seed: int
    kills: int = 0
    others: int = 0
    failures: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def main() -> None:
    """Runs histories until there are enough kills; exits with 1 if any history ended otherwise than undisturbed."""
    arguments = _arguments()
    base = Path(tempfile.mkdtemp(prefix="t", dir=arguments.folder))
    names = [arguments.space] if arguments.space else sorted(set(DRAWN))
    references = {name: _undisturbed(base / name[:1], SPACES / f"{name}.yaml") for name in names}
    totals = Totals(arguments.seed)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for done in [pool.submit(_work, arguments, base, references, totals) for _ in range(arguments.jobs)]:
            done.result()
    print(
        f"{totals.kills} kills, {totals.others} other faults, {totals.failures} histories that did not end as undisturbed",
        flush=True,
    )
    shutil.rmtree(base, ignore_errors=True) if not totals.failures else print(f"kept: {base}")
    sys.exit(totals.failures > 0)


def _work(arguments: argparse.Namespace, base: Path, references: dict[str, Reference], totals: Totals) -> None:
    """Runs one history after the other until all threads together have enough kills."""
    while True:
        with totals.lock:
            if totals.kills >= arguments.kills:
                return
            seed, totals.seed = totals.seed, totals.seed + 1
        rng = random.Random(seed)
        name = arguments.space or rng.choice(DRAWN)
        cache = references[name].cache if rng.random() < 0.75 else None
        settings = {"server": rng.random() < arguments.server, "cache": cache}
        started = time.monotonic()
        outcome, made = _one(base / f"h{seed}", SPACES / f"{name}.yaml", seed, references[name], arguments.runs, settings)
        entry = {"seed": seed, "commit": arguments.commit, "space": name, **{k: bool(v) for k, v in settings.items()}}
        num_kills = sum(fault.startswith(KILLED) for fault in made.faults)
        with totals.lock:
            for fault in made.faults:
                _append(arguments.counter, entry | {"fault": fault, "outcome": outcome})
            totals.kills, totals.others = totals.kills + num_kills, totals.others + len(made.faults) - num_kills
            totals.failures += outcome != "equal"
            print(
                f"seed {seed} {name}: {outcome}; {num_kills} kills, {len(made.faults)} faults in "
                f"{time.monotonic() - started:.0f} s; {totals.kills} kills and {totals.others} other faults in all; "
                f"{'; '.join(made.notes)}",
                flush=True,
            )
        if outcome == "equal":
            shutil.rmtree(made.folder, ignore_errors=True)


def _one(
    folder: Path, space: Path, seed: int, expected: Reference, num_runs: int, settings: dict[str, Any]
) -> tuple[str, History]:
    """Returns how one history ended, in a few words, and the history."""
    with history(folder, space, seed=seed, **settings) as made:
        try:
            _faults(made, num_runs)
            last = made.finish()
            found = [f"differs: {part}" for part in digest.differences(expected.digest, made.result(last))]
            found += made.complaints(last)
        except (AssertionError, TimeoutError) as error:
            found = [str(error)]
        return "; ".join(found) or "equal", made


def _faults(made: History, count: int) -> None:
    for _ in range(count):
        if made.finished:
            return
        if made.server:
            made.server.proxy.share = made.random.choice([0.0, 0.1, 0.3])
        made.disturb()
    if made.server:
        made.server.proxy.share = 0.0


def _undisturbed(folder: Path, space: Path) -> Reference:
    """Returns what an undisturbed run ends in."""
    with history(folder, space, seed=0) as made:
        last = made.finish()
        assert not (found := made.complaints(last)), found
        return Reference(made.result(last), made.storage / "cache")


def _append(counter: Path, entry: dict[str, Any]) -> None:
    with counter.open("a", encoding="utf-8") as out:
        out.write(json.dumps(entry) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="stop after this many (default 100)")
    parser.add_argument("--seed", type=int, default=1, help="of the first history; the next has the next (default 1)")
    parser.add_argument(
        "--runs", type=int, default=4, help="runs with faults per history, before the one to the end (default 4)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="histories at a time (default 2)")
    parser.add_argument("--space", choices=["grid", "long", "coverage"], help="only this one")
    parser.add_argument("--server", type=float, default=0.25, help="share of histories with a real MLflow server (0.25)")
    parser.add_argument("--counter", type=Path, default=Path("torture.jsonl"), help="results are appended to it")
    parser.add_argument("--folder", default="/tmp", help="short; histories lie in it while they run")
    parser.add_argument("--commit", default=_commit(), help="noted with each result")
    return parser.parse_args()


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
