"""What a sweep costs beside training: the driver's processor time, and the pause between two trials in one process.

Trials are short, so that there are many pauses: each is the time from a trial's last file to the next one's first row,
with what the driver, the study, MLflow's thread and Tune do in between.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from prolu_tune.bench.options import show
from prolu_tune.bench.source import SourceOptions, activation_config, source_parser
from prolu_tune.errors import SurroundingsError

DRIVER = """
import sys, time
from pathlib import Path
from prolu_tune.screen.screen import make_screen
from prolu_tune.search.space import load_space
from prolu_tune.sweep.runner import run_sweep
space = load_space(sys.argv[1])
began = time.process_time()
outcome = run_sweep(space, storage=Path(sys.argv[2]), screen=make_screen())
print(outcome.exit_code, time.process_time() - began)
"""
A_MINUTE_S = 60.0


class OverheadOptions(SourceOptions):
    """The flags of model and data and this measurement's own."""

    trials: int


def main() -> None:
    """Prints a table, or with `--json` one line of JSON.

    Raises:
        SurroundingsError: if the sweep fails.
    """
    made: argparse.ArgumentParser = source_parser("overhead", __doc__, tokens=0, d_sae=512, batch=256, steps=100)
    made.add_argument("--trials", type=int, default=12, help="one after the other, in one process")
    options = made.parse_args(namespace=OverheadOptions())
    show(measure(options), as_json=options.json)


def measure(options: OverheadOptions) -> dict[str, float | int | str]:
    """Returns the median pause in seconds and the driver's processor seconds per trial, start and end of Ray left out.

    Raises:
        SurroundingsError: if the sweep fails.
    """
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as folder:  # short: Ray puts sockets below it
        few, _ = _sweep(options, Path(folder) / "few", trials=2)
        many, pauses = _sweep(options, Path(folder) / "many", trials=2 + options.trials)
    per_trial = (many - few) / options.trials
    return {
        "pause_s": statistics.median(pauses),
        "longest_pause_s": max(pauses),
        "driver_cpu_s_per_trial": per_trial,
        "share_of_a_minute": per_trial / A_MINUTE_S,
        **{name: getattr(options, name) for name in ("trials", "d_sae", "batch", "steps", "model", "hook")},
    }


def _sweep(options: OverheadOptions, storage: Path, *, trials: int) -> tuple[float, list[float]]:
    """Returns the driver's processor seconds and the pauses between its trials."""
    storage.mkdir()
    space = {
        "name": "bench",
        "activations": activation_config(options).model_dump(mode="json", exclude_unset=True),
        "sae": {"d_sae": options.d_sae},
        "training": {"num_tokens": options.steps * options.batch, "batch_size": options.batch},
        "resampling": {"steps": []},
        "evaluation": {"num_tokens": 1024},
        "architectures": {"relu+l1": {"l1_coefficient": [1 + number / 10 for number in range(trials)]}},
        "search": {"kind": "grid"},
        "resources": {"cpus_per_trial": 1, "max_concurrent_trials": 1},
    }
    path = storage / "space.yaml"
    path.write_text(json.dumps(space), encoding="utf-8")
    command = [sys.executable, "-c", DRIVER, str(path), str(storage)]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603  # ours
    first_rows: dict[int, float] = {}
    while driver.poll() is None:
        number = len(first_rows)
        if (storage / f"sweeps/bench/trials/{number:04d}/metrics.jsonl").exists():
            first_rows[number] = time.time()
        time.sleep(0.002)
    said, complaint = driver.communicate()
    if not said.startswith("0 "):
        raise SurroundingsError(f"the sweep failed: {(complaint.strip().splitlines() or ['no message'])[-1]}")
    ends = {n: (storage / f"sweeps/bench/trials/{n:04d}/sae/config.json").stat().st_mtime for n in range(trials)}
    return float(said.split()[1]), [first_rows[n] - ends[n - 1] for n in range(1, trials)]


if __name__ == "__main__":
    main()
