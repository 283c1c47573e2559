"""Kills real sweeps over and over and compares what they end in with an undisturbed run; `--help` says how.

Each history is one sweep in a fresh storage folder: several runs of the same command, each with a fault at a seeded
moment, then the same command until it ends. Results are appended to a counter file, one JSON line per fault.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from torture import digest  # noqa: E402  its folder is on the path only now
from torture.history import KILLS, History, history  # noqa: E402

KILLED = (*(f"{role} at" for role in KILLS), "mlflow server killed")
"""How the notes of those faults begin that are SIGKILLs."""
SPACES = REPOSITORY / "tests" / "torture" / "spaces"


def main() -> None:
    """Runs histories until there are enough kills; exits with 1 if any history ended otherwise than undisturbed."""
    arguments = _arguments()
    base = Path(tempfile.mkdtemp(prefix="t", dir=arguments.folder))
    kills = others = failures = 0
    reference = {name: _undisturbed(base / name[:1], SPACES / f"{name}.yaml") for name in ("grid", "coverage")}
    seed = arguments.seed
    while kills < arguments.kills:
        rng = random.Random(seed)
        name = rng.choice(["grid", "grid", "coverage"]) if not arguments.space else arguments.space
        expected, num_trials, cache = reference[name]
        settings = {"server": rng.random() < arguments.server, "cache": cache if rng.random() < 0.75 else None}
        started = time.monotonic()
        outcome, made = _one(base / f"h{seed}", SPACES / f"{name}.yaml", seed, expected, num_trials, arguments.runs, settings)
        entry = {"seed": seed, "commit": arguments.commit, "space": name, **{k: bool(v) for k, v in settings.items()}}
        for fault in made.faults:
            _append(arguments.counter, entry | {"fault": fault, "outcome": outcome})
        num_kills = sum(fault.startswith(KILLED) for fault in made.faults)
        kills, others = kills + num_kills, others + len(made.faults) - num_kills
        failures += outcome != "equal"
        print(
            f"seed {seed} {name}: {outcome}; {len(made.faults)} faults in {time.monotonic() - started:.0f} s; "
            f"{kills} kills and {others} other faults in all; {'; '.join(made.notes)}",
            flush=True,
        )
        if outcome == "equal":
            shutil.rmtree(made.folder, ignore_errors=True)
        seed += 1
    print(f"{kills} kills, {others} other faults, {failures} histories that did not end as undisturbed", flush=True)
    shutil.rmtree(base, ignore_errors=True) if not failures else print(f"kept: {base}")
    sys.exit(failures > 0)


def _one(
    folder: Path, space: Path, seed: int, expected: dict[str, str], num_trials: int, num_runs: int, settings: dict[str, Any]
) -> tuple[str, History]:
    """Returns how one history ended, in a few words, and the history."""
    with history(folder, space, seed=seed, **settings) as made:
        try:
            _faults(made, num_runs, num_trials=num_trials)
            last = made.finish()
            found = [f"differs: {part}" for part in digest.differences(expected, made.result(last))]
            found += made.complaints(last)
        except AssertionError as error:
            found = [str(error)]
        return "; ".join(found) or "equal", made


def _faults(made: History, count: int, *, num_trials: int) -> None:
    for _ in range(count):
        if made.finished:
            return
        if made.server:
            made.server.proxy.share = made.random.choice([0.0, 0.1, 0.3])
            if made.random.random() < 0.3:
                made.server.kill()
                made.faults.append("mlflow server killed")
        made.disturb(num_trials=num_trials)
    if made.server:
        made.server.proxy.share = 0.0


def _undisturbed(folder: Path, space: Path) -> tuple[dict[str, str], int, Path]:
    """Returns the digest of an undisturbed run, how many trials it has, and its activations."""
    with history(folder, space, seed=0) as made:
        last = made.finish()
        assert not (found := made.complaints(last)), found
        return made.result(last), len(json.loads(last.out)["runs"]), made.storage / "cache"


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
    parser.add_argument("--space", choices=["grid", "coverage"], help="only this one")
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
