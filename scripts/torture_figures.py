"""Measures single promises about faults on real sweeps: two drivers at once, restarts, checkpoints, MLflow away.

`--help` lists them. Each prints what it measured, last of all one JSON line, and ends with 1 if a promise was not kept.
"""

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from torture import digest, processes  # noqa: E402  its folder is on the path only now
from torture.history import Attempt, History, history  # noqa: E402

SPACES = REPOSITORY / "tests" / "torture" / "spaces"
REFUSED_S, RESTART_S, CHECKPOINT_SHARE, LOSS_SHARE = 5.0, 15.0, 0.02, 0.05
LONG_S = 1800.0


def main() -> None:
    """Measures what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="/tmp", help="short; sweeps lie in it while they run")
    verbs = parser.add_subparsers(dest="what", required=True)
    pairs = verbs.add_parser("pairs", help="two drivers started at once on the same sweep, over and over")
    pairs.add_argument("--pairs", type=int, default=50)
    pairs.add_argument("--seed", type=int, default=1)
    restart = verbs.add_parser("restart", help="from a killed driver's command to the first row of a trial")
    restart.add_argument("--space", type=Path, default=REPOSITORY / "search_spaces" / "quickstart.yaml")
    restart.add_argument("--times", type=int, default=3)
    verbs.add_parser("checkpoint", help="what a checkpoint costs at 768 x 12,288")
    away = verbs.add_parser("away", help="MLflow away while trials train")
    away.add_argument("--away", type=float, default=600.0, help="seconds (default 600)")
    away.add_argument(
        "--tokens",
        type=int,
        default=0,
        help="of each of four trainings (default: enough for that time and half as much on two cores)",
    )
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="t", dir=arguments.folder))
    measure: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
        "pairs": measure_pairs,
        "restart": measure_restarts,
        "checkpoint": measure_checkpoint,
        "away": measure_away,
    }
    try:
        found = measure[arguments.what](arguments, base)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    print(json.dumps({"what": arguments.what, "load": round(os.getloadavg()[0], 1), **found}))
    sys.exit(not found["kept"])


def measure_pairs(arguments: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Exactly one of two goes on; the other names it and leaves with 3."""
    draw, seconds, bad = random.Random(arguments.seed), list[float](), list[str]()
    with history(base / "h", SPACES / "grid.yaml", seed=0) as made:
        for number in range(arguments.pairs):
            both = [made.start()]
            time.sleep(draw.choice([0.0, draw.uniform(0, 1)]))
            both.append(made.start())
            started = time.monotonic()
            while all(one.process.poll() is None for one in both) and time.monotonic() - started < 60:
                time.sleep(0.01)
            seconds.append(time.monotonic() - started)
            found = _judge_pair(both)
            bad += [f"pair {number}: {found}"] if found else []
            print(f"pair {number}: {found or 'one goes on'}, the other left after {seconds[-1]:.1f} s", flush=True)
            for one in both:
                processes.kill_all(one.process.pid)
                one.wait(10)
        last = made.finish()
        bad += made.complaints(last)
    late = sum(second > REFUSED_S for second in seconds)
    return {
        "pairs": len(seconds),
        "bad": bad,
        "later than 5 s": late,
        "median_s": round(statistics.median(seconds), 2),
        "longest_s": round(max(seconds), 2),
        "kept": not bad and not late,
    }


def _judge_pair(both: list[Attempt]) -> str | None:
    """Returns what is wrong with how a pair went, None if nothing is."""
    time.sleep(0.3)
    ended = [one for one in both if one.process.poll() is not None]
    if len(ended) != 1:
        return f"{len(ended)} of the two left"
    (loser,), (winner,) = ended, [one for one in both if one not in ended]
    code, words = loser.wait(10), loser.lines[-1] if loser.lines else ""
    if code != 3 or f"process {winner.process.pid} on {socket.gethostname()}" not in words:
        return f"exit {code}: {words}"
    return None


def measure_restarts(arguments: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Kills a driver when a trial has just begun, gives the command again, waits for that trial's first row."""
    seconds: list[float] = []
    with history(base / "h", arguments.space.absolute(), seed=0) as made:
        attempt = made.start()
        for number in range(arguments.times):
            made.wait_for(attempt, f"trial {2 * number + 1}/")
            processes.kill_all(attempt.process.pid)
            attempt.process.wait()
            time.sleep(2)
            rows = _rows(made)
            started = time.monotonic()
            attempt = made.start()
            while not any(count > rows.get(name, 0) for name, count in _rows(made).items()):
                assert attempt.process.poll() is None, attempt.lines
                time.sleep(0.02)
            seconds.append(time.monotonic() - started)
            print(f"restart {number}: {seconds[-1]:.1f} s to the first new row; {attempt.lines}", flush=True)
        processes.kill_all(attempt.process.pid)
        attempt.process.wait()
    return {"seconds": [round(second, 1) for second in seconds], "kept": statistics.median(seconds) <= RESTART_S}


def _rows(made: History) -> dict[str, int]:
    """Returns how many bytes of rows each trial has."""
    folder = made.storage / "sweeps" / made.name / "trials"
    return {path.parent.name: path.stat().st_size for path in folder.glob("*/metrics.jsonl")}


def measure_checkpoint(arguments: argparse.Namespace, base: Path) -> dict[str, Any]:
    """Times the write of a real training's whole state: weights, both moments, counts."""
    from prolu_tune.config.resolve import plan_trial
    from prolu_tune.search.space import load_space
    from prolu_tune.training.checkpoint import save_checkpoint
    from prolu_tune.training.state import Trainer

    config = load_space(SPACES / "grid.yaml", overrides=["sae.d_sae=12288"]).trials()[0]
    trainer = Trainer(config, plan_trial(config, d_in=768), device="cpu")
    seconds = []
    for trainer.step in range(7):
        started = time.monotonic()
        written = save_checkpoint(base / "checkpoints", trainer.state_dict())
        seconds.append(time.monotonic() - started)
    every_s = type(config.training).model_fields["checkpoint_every_s"].default
    share = statistics.median(seconds) / every_s
    return {
        "MB": round(written.stat().st_size / 1e6),
        "seconds": [round(second, 2) for second in seconds],
        "every_s": every_s,
        "share": round(share, 4),
        "kept": share < CHECKPOINT_SHARE,
    }


def measure_away(arguments: argparse.Namespace, base: Path) -> dict[str, Any]:
    """The same sweep with MLflow there and away: steps per second of its trials, and what MLflow holds at the end."""
    tokens = arguments.tokens or int(arguments.away * 10_000)
    space = base / "away.yaml"
    # The bundled data hold 600,000 tokens to train on.
    text = (SPACES / "grid.yaml").read_text().replace("name: grid", "name: away")
    text = text.replace("chunk_tokens: 8192", f"chunk_tokens: 8192, epochs: {1 + tokens // 600_000}")
    # Wide, so that the steps and not the writing of their rows take the time.
    text = text.replace("d_sae: 256", "d_sae: 8192").replace("every_s: 0.1, log_every: 4", "every_s: 5, log_every: 50")
    space.write_text(text.replace("num_tokens: 24576", f"num_tokens: {tokens}"))
    settings = {"seed": 0, "server": True}
    # Makes the activations, so that no language model runs beside the others: one quick training that reads them all.
    quick = [
        "--set",
        "training.batch_size=4096",
        "--set",
        "resampling={steps: []}",
        "--set",
        "architectures={relu+l1: {l1_coefficient: [1]}}",
    ]
    with history(base / "a", space, seed=0) as first:
        assert first.start(*quick).wait(LONG_S) == 0
    cache = first.storage / "cache"
    with history(base / "h", space, **settings, cache=cache) as here:
        last = here.start()
        assert last.wait(LONG_S) == 0, last.lines
        expected, throughput = here.result(last), _throughput(last)
    with history(base / "b", space, **settings, cache=cache) as made:
        assert made.server is not None
        attempt = made.start()
        made.wait_for(attempt, "started ")
        made.server.proxy.away = True
        gone = time.monotonic()
        while time.monotonic() - gone < arguments.away and attempt.process.poll() is None:
            time.sleep(0.2)
        under_way = attempt.process.poll() is None and not any("trials ended" in line for line in attempt.lines)
        made.server.proxy.away = False
        if attempt.wait(LONG_S) == 3:  # done before the server was back: the command says to be given again
            attempt = made.start()
        code = attempt.wait(LONG_S)
        assert code == 0, attempt.lines
        differing = digest.differences(expected, made.result(attempt)) + made.complaints(attempt)
        lost = 1 - _throughput(attempt) / throughput
    return {
        "away_s": arguments.away,
        "still under way when it came back": under_way,
        "tokens_per_s here": round(throughput),
        "throughput lost": round(lost, 4),
        "missing, doubled or other": differing,
        "kept": not differing and lost < LOSS_SHARE,
    }


def _throughput(last: Attempt) -> float:
    """Returns tokens per second of training, over all trials."""
    runs = json.loads(last.out)["runs"]
    return sum(run["tokens"] for run in runs) / sum(run["wall_s"] for run in runs)


if __name__ == "__main__":
    main()
