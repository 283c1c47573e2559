"""The flags that measurements share, and how their results are printed."""

import argparse
import json
import platform
import time
from pathlib import Path

from prolu_tune.errors import InputError

CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
"""On a busy machine the CPU time of the thread that calls torch is what an idle machine would take, if torch's other threads
wait without spinning (OMP_WAIT_POLICY=passive): each of them gets an equal share of the work."""


class Options(argparse.Namespace):
    """What every measurement is told; a measurement's own flags are attributes besides."""

    d_in: int
    d_sae: int
    batch: int
    l0: float
    steps: int
    device: str
    threads: int
    clock: str
    json: bool


def make_parser(name: str, description: str | None, *, threads: int, **defaults: float) -> argparse.ArgumentParser:
    """Returns a parser of the shared flags.

    Args:
        name: of the measurement.
        description: printed by `--help`.
        threads: default of `--threads`.
        defaults: of d_in, d_sae, batch, l0 and steps; one that is not named is no flag of this measurement.
    """
    parser = argparse.ArgumentParser(prog=f"python -m prolu_tune.bench {name}", description=description)
    texts = {
        "d_in": "width of the activations",
        "d_sae": "number of latents",
        "batch": "activations per step",
        "l0": "mean number of active latents",
        "steps": "steps of each kind; medians are printed",
    }
    for key, value in defaults.items():
        parser.add_argument(f"--{key.replace('_', '-')}", type=type(value), default=value, help=texts[key])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=threads, help="CPU threads")
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="cpu: the thread's, for a busy machine; set OMP_WAIT_POLICY=passive",
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    return parser


def check_device(device: str) -> None:
    """Checks that torch has this device.

    Raises:
        InputError: if it has not.
    """
    import torch

    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {device} was asked for, but torch {torch.__version__} sees no GPU here; use cpu")


def show(result: dict[str, float | int | str], *, as_json: bool) -> None:
    """Prints a result as a table, or as one line of JSON."""
    if as_json:
        print(json.dumps(result))
        return
    width = max(map(len, result))
    for name, value in result.items():
        print(f"{name:>{width}}  {value:.4g}" if isinstance(value, float) else f"{name:>{width}}  {value}")


def machine() -> str:
    """Returns the processor's name, as the system knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
