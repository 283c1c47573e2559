"""Runs the fault simulator: `--seeds 0:20000`, `--seed 17 --trace` or `--planted`; exit 1 if a promise was broken."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
# One thread a process: there are as many processes as cores.
os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"})


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0:2000", metavar="A:B", help="seeds A to B - 1 (default 0:2000)")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="processes (default 2)")
    parser.add_argument("--seed", type=int, metavar="N", help="run one seed and say what became of it")
    parser.add_argument("--trace", action="store_true", help="with --seed: print every effect on disk and server")
    parser.add_argument("--planted", action="store_true", help="plant each known bug in turn and see whether it is caught")
    parser.add_argument("--least", type=int, default=0, metavar="N", help="fail if a failpoint was hit less often (default 0)")
    arguments = parser.parse_args()

    from simulator import command

    if arguments.planted:
        return command.planted(processes=arguments.processes)
    if arguments.seed is not None:
        return command.one_seed(arguments.seed, trace=arguments.trace)
    first, _, last = arguments.seeds.partition(":")
    return command.campaign(int(first), int(last), processes=arguments.processes, least=arguments.least)


if __name__ == "__main__":
    sys.exit(main())
