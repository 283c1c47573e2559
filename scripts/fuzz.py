"""Mutated inputs against every reader: `python scripts/fuzz.py --inputs 100000 --seed 0`; exit code 1 if one misbehaved.

Never anything but our own errors, never code run, never a file written elsewhere, never more memory than ten times the
input and a fixed floor, never a hang. `--reader NAME --number N` repeats one input and shows its traceback.
"""

import argparse
import json
import os
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402 - the tests' folder has to be on the path first
from hostile.guard import SECONDS, Guard  # noqa: E402
from hostile.readers import READERS, one, warm_up  # noqa: E402

BLOCK = 500
"""Inputs of one process; a crash of one input loses the rest of its block, which then starts behind it."""
WARM_UP = 30
"""Inputs that are read before the guard looks, so that everything imported late is there."""


def main() -> int:
    """Fuzzes all readers; returns 1 if any misbehaved."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=sorted(READERS))
    parser.add_argument("--number", type=int, help="repeat this input alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.number is not None:
        with tempfile.TemporaryDirectory(prefix="prolu-fuzz-", dir=_in_memory()) as scratch:
            name, guard = options.reader or "search space", Guard(Path(scratch))
            warm_up(name, guard, Path(scratch), inputs=WARM_UP)
            print(one(name, options.seed, options.number, guard, Path(scratch)))
        return 0
    started, bad, total = time.monotonic(), 0, 0
    for name, reader in READERS.items():
        if options.reader not in (None, name):
            continue
        count = options.inputs if options.reader else max(1, options.inputs * reader.share // 100)
        outcomes: Counter[str] = Counter()
        for number, outcome in read_all(name, options.seed, count):
            kind = outcome if outcome in ("taken", "refused") else "misbehaved"
            outcomes[kind] += 1
            if kind == "misbehaved":
                print(f"{name}, seed {options.seed}, number {number}: {outcome[:400]}", file=sys.stderr, flush=True)
        bad, total = bad + outcomes["misbehaved"], total + count
        print(json.dumps({"reader": name, "inputs": count, **outcomes, "s": round(time.monotonic() - started)}), flush=True)
    took = time.monotonic() - started
    print(f"{total - bad} of {total} inputs were taken or refused cleanly (seed {options.seed}, {took:.0f} s)")
    return 1 if bad else 0


def read_all(name: str, seed: int, count: int) -> Iterator[tuple[int, str]]:
    """Yields (number, outcome) of each input, read in processes of their own."""
    number = 0
    while number < count:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _read_block(name, seed, number, min(number + BLOCK, count), writing)
        os.close(writing)
        buffer = b""
        while True:
            ready, _, _ = select.select([reading], [], [], 6 * SECONDS)
            part = os.read(reading, 1 << 16) if ready else b""
            if not part:
                break
            *lines, buffer = (buffer + part).split(b"\n")
            for line in lines:
                yield number, line.decode("utf-8", "replace")
                number += 1
        os.close(reading)
        if not ready:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if status:
            yield number, "hung for good" if not ready else f"the process died: status {status}"
            number += 1


def _read_block(name: str, seed: int, first: int, after: int, tell: int) -> None:
    """In a forked process: reads inputs and tells a line for each."""
    status = 1
    try:
        with tempfile.TemporaryDirectory(prefix="prolu-fuzz-", dir=_in_memory()) as scratch:
            guard = Guard(Path(scratch))
            warm_up(name, guard, Path(scratch), inputs=WARM_UP)
            for number in range(first, after):
                os.write(tell, _outcome(name, seed, number, guard, Path(scratch)).replace("\n", " ").encode()[:2000] + b"\n")
        status = 0
    finally:
        os._exit(status)


def _outcome(name: str, seed: int, number: int, guard: Guard, scratch: Path) -> str:
    try:
        return one(name, seed, number, guard, scratch)
    except AssertionError as error:
        return str(error) or "a check failed"


def _in_memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


if __name__ == "__main__":
    sys.exit(main())
