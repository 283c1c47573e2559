"""A whole sweep: several autoencoders on one language model, from an empty cache to their folders, start of processes included.

With `--peers` SAELens trains as many on the same rows with its runner for several autoencoders at once, which shares the
language model too. Ours evaluates each autoencoder besides and writes MLflow's runs; SAELens is asked for neither.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from prolu_tune.activations.model_info import describe_model
from prolu_tune.bench.options import show
from prolu_tune.bench.peers.client import PYTHON, check_installed
from prolu_tune.bench.source import SourceOptions, activation_config, fresh_source, source_parser
from prolu_tune.errors import SurroundingsError

LOWEST, HIGHEST = 1.0, 8.0
"""Coefficients of the penalty run from one to the other, evenly in the logarithm."""
EVAL_TOKENS = 8192


class SweepOptions(SourceOptions):
    """The flags of model and data and this measurement's own."""

    saes: int
    rounds: int
    peers: bool


def main() -> None:
    """Prints a table, or with `--json` one line of JSON.

    Raises:
        InputError: if the model or SAELens is not to be had.
        SurroundingsError: if a sweep fails.
    """
    made: argparse.ArgumentParser = source_parser("sweep", __doc__, tokens=0, d_sae=4096, batch=4096, steps=150)
    made.add_argument("--saes", type=int, default=8, help="autoencoders")
    made.add_argument("--rounds", type=int, default=3, help="sweeps of each kind; medians are printed")
    made.add_argument("--peers", action="store_true", help="SAELens beside it")
    options = made.parse_args(namespace=SweepOptions())
    show(measure(options), as_json=options.json)


def measure(options: SweepOptions) -> dict[str, float | int | str]:
    """Returns the medians of the wall clock in seconds and their ratio.

    Raises:
        InputError: if the model or SAELens is not there.
        SurroundingsError: if a sweep fails.
    """
    if options.peers:
        check_installed()
    options.tokens = options.steps * options.batch
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        theirs = _write_peers_input(options, root) if options.peers else []
        seconds: dict[str, list[float]] = {}
        printed: dict[str, Any] = {}
        for number in range(options.rounds):
            seconds.setdefault("s", []).append(_run(_our_command(options, root, number))[0])
            if options.peers:
                wall, answer = _run([*theirs, str(root / f"saelens{number}")])
                printed = json.loads(answer.strip().splitlines()[-1])
                seconds.setdefault("saelens_s", []).append(wall)
                seconds.setdefault("saelens_training_s", []).append(printed["seconds"])
        records = _records(root / f"ours{options.rounds - 1}")
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    ours: dict[str, float | int | str] = {
        "our_trials_s": sum(record["wall_s"] for record in records),
        "our_l0": " ".join(f"{record['l0']:.0f}" for record in records),
    }
    ratios = {f"{name.removesuffix('_s')}_over_ours": value / medians["s"] for name, value in medians.items() if name != "s"}
    named = {name: getattr(options, name) for name in ("saes", "rounds", "d_sae", "batch", "steps", "threads", "model", "hook")}
    return {**medians, **ratios, **ours, **named, **({"saelens_version": printed["version"]} if printed else {})}


def _run(command: list[str]) -> tuple[float, str]:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603  # put together here
    seconds = time.perf_counter() - began
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
        raise SurroundingsError(f"{' '.join(command[:4])} ... ended with {done.returncode}: {last}")
    return seconds, done.stdout


def _our_command(options: SweepOptions, root: Path, number: int) -> list[str]:
    space = {
        "name": "bench",
        "activations": activation_config(options).model_dump(mode="json", exclude_unset=True),
        "sae": {"d_sae": options.d_sae},
        "training": {"num_tokens": options.tokens, "batch_size": options.batch, "lr": 1e-3},
        "resampling": {"steps": []},
        "evaluation": {"num_tokens": EVAL_TOKENS},
        "architectures": {
            "relu+l1": {"l1_coefficient": [round(float(c), 3) for c in np.geomspace(LOWEST, HIGHEST, options.saes)]}
        },
        "search": {"kind": "grid"},
        "resources": {"cpus_per_trial": 1, "max_concurrent_trials": options.threads},
    }
    path = root / "space.yaml"
    path.write_text(json.dumps(space), encoding="utf-8")
    return [sys.executable, "-m", "prolu_tune.cli.main", "run", str(path), "--storage", str(root / f"ours{number}"), "--json"]


def _records(storage: Path) -> list[dict[str, float]]:
    configs = sorted(storage.glob("sweeps/bench/trials/*/sae/config.json"))
    return [json.loads(path.read_bytes())["metrics"] for path in configs]


def _write_peers_input(options: SweepOptions, root: Path) -> list[str]:
    """Returns SAELens's command, which lacks only the folder for its results; its rows are the first of our stream."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(fresh_source(options))
        rows = -(-options.tokens // source.config.context_length)
        have, _ = source.rows.count("train")
        np.save(root / "rows.npy", source.rows.take("train", epoch=0, start=0, count=min(rows, have)))
        d_in = source.d_in
    info = describe_model(activation_config(options))
    script = Path(__file__).parent / "peers" / "sweep_saelens.py"
    named = {"d-in": d_in, "d-sae": options.d_sae, "batch": options.batch, "tokens": options.tokens, "saes": options.saes}
    flags = [text for name, value in (named | {"threads": options.threads}).items() for text in (f"--{name}", str(value))]
    return [str(PYTHON), str(script), *flags, str(info.folder), options.hook, str(root / "rows.npy")]


if __name__ == "__main__":
    main()
