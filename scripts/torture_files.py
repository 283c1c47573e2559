"""Files against everything that can happen to them, with the real kernel: power cuts, system calls struck, full disks.

    python scripts/torture_files.py --power-cuts 40 --filesystem ext4      (root; xfs as well, with xfsprogs)
    python scripts/torture_files.py --strace                               (strace)
    python scripts/torture_files.py --full-disk                            (root)

Each outcome is a line of JSON in the counter file. Exit code 1 if something was lost.
"""

import argparse
import contextlib
import datetime
import fcntl
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402 - the tests' folder has to be on the path first
from events import operations as op  # noqa: E402
from events.operations import OPERATIONS  # noqa: E402
from events.tracing import traced  # noqa: E402  as above

from prolu_tune.activations.arrow_files import DamagedFileError  # noqa: E402
from prolu_tune.activations.cache import open_chunk  # noqa: E402
from prolu_tune.errors import InputError, SurroundingsError  # noqa: E402
from prolu_tune.sweep.files import read_stored  # noqa: E402
from prolu_tune.training.checkpoint import load_newest, save_checkpoint  # noqa: E402

GOING_DOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN, what `xfs_io -x -c shutdown` calls."""
NO_LOG_FLUSH = 2
IMAGE_BYTES = {"ext4": 64 << 20, "xfs": 400 << 20}


def main() -> int:
    """Does what was asked for; returns 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--power-cuts", type=int, default=0, metavar="N")
    parser.add_argument("--filesystem", choices=sorted(IMAGE_BYTES), default="ext4")
    parser.add_argument("--strace", action="store_true", help="strike at every system call of every write")
    parser.add_argument("--full-disk", action="store_true", help="a small tmpfs, filled up")
    parser.add_argument("--plant", choices=["no-fsync"], help="break it on purpose: power cuts must then lose something")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--counter", type=Path, default=Path("torture.jsonl"), help="outcomes are appended here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.plant:
        os.fsync = lambda descriptor: None
    counter = Counter(options.counter)
    if options.power_cuts:
        power_cuts(options.power_cuts, options.filesystem, options.seed, counter)
    if options.strace:
        strace_all(counter)
    if options.full_disk:
        full_disk(counter)
    print(counter.summary())
    return 1 if counter.lost else 0


class Counter:
    """Appends outcomes to a file of JSON lines and counts them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        self._commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
        self.kept = 0
        self.lost = 0

    def note(self, kind: str, seed: int, problem: str | None, **details: Any) -> None:
        """Notes one outcome; `problem` says what was lost."""
        self.kept += problem is None
        self.lost += problem is not None
        outcome = "kept" if problem is None else "lost"
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = {"kind": kind, "seed": seed, "commit": self._commit, "when": when, "outcome": outcome, **details}
        if problem is not None:
            record["problem"] = problem
            print(json.dumps(record), file=sys.stderr)
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def summary(self) -> str:
        """Returns the totals in a line."""
        return f"{self.kept} of {self.kept + self.lost} kept everything; outcomes in {self._path}"


# -- power cuts


@contextlib.contextmanager
def image(filesystem: str) -> Iterator[tuple[Path, Path]]:
    """Yields (an image with an empty file system, a folder to mount it on)."""
    with tempfile.TemporaryDirectory(prefix="prolu-power-") as scratch:
        file, mount = Path(scratch) / "disk", Path(scratch) / "mount"
        mount.mkdir()
        with file.open("wb") as disk:
            disk.truncate(IMAGE_BYTES[filesystem])
        force = {"ext4": "-F", "xfs": "-f"}[filesystem]
        subprocess.run([f"mkfs.{filesystem}", "-q", force, str(file)], check=True, capture_output=True)
        try:
            yield file, mount
        finally:
            subprocess.run(["umount", str(mount)], check=False, capture_output=True)


def mounted(file: Path, mount: Path) -> None:
    """Mounts an image; the file system replays its log as after a power cut."""
    subprocess.run(["mount", "-o", "loop", str(file), str(mount)], check=True, capture_output=True)


def power_cuts(count: int, filesystem: str, seed: int, counter: Counter) -> None:
    """Cuts the power at random moments of a sweep's writes; each cut goes on with what the one before left."""
    for start in range(0, count, 10):
        with image(filesystem) as (file, mount):
            promised: dict[str, int] = {}
            for number in range(start, min(start + 10, count)):
                rng = random.Random(f"{filesystem}/{seed}/{number}")
                mounted(file, mount)
                delay = rng.choice((rng.random() * 0.05, rng.random() * 0.4))
                written = write_until_cut(mount, delay, promised)
                subprocess.run(["umount", str(mount)], check=True, capture_output=True)
                mounted(file, mount)
                problem, found = _problem(lambda promised=promised, mount=mount: look(mount, promised))
                subprocess.run(["umount", str(mount)], check=True, capture_output=True)
                counter.note("power cut", seed, problem, filesystem=filesystem, number=number, acknowledged=written)
                promised = found or {}
                if problem is not None:
                    break


def write_until_cut(mount: Path, delay: float, promised: dict[str, int]) -> int:
    """Writes in a process of its own, cuts the power `delay` seconds after its first acknowledgement, and kills it.

    Returns how many writes were acknowledged; `promised` then holds the last of each kind.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with contextlib.suppress(BaseException):
            _write_forever(mount, writing)
        os._exit(0)
    os.close(writing)
    descriptor = os.open(mount, os.O_RDONLY)
    select.select([reading], [], [], 60)
    time.sleep(delay)
    # What was acknowledged before the cut is what the pipe holds now; the cut may still let a write through after it.
    os.set_blocking(reading, False)
    told = bytearray()
    with contextlib.suppress(BlockingIOError):
        while part := os.read(reading, 1 << 16):
            told += part
    fcntl.ioctl(descriptor, GOING_DOWN, NO_LOG_FLUSH.to_bytes(4, "little"))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(descriptor)
    os.close(reading)
    lines = bytes(told).split(b"\n")[:-1]
    for line in lines:
        kind, number = line.decode().split("=")
        promised[kind] = int(number)
    return len(lines)


def _write_forever(mount: Path, tell: int) -> None:
    """Repeats the writes of a trial, going on from what is there; tells each when it is done."""
    # `small` is the last of a round: all before it is done, and of the next round any part may be, to be repeated.
    number = look(mount, {}).get("small", 0)
    study, rows = op.open_study(mount), op.rows_file(mount)
    while True:
        number += 1

        def done(kind: str, number: int = number) -> None:
            os.write(tell, f"{kind}={number}\n".encode())

        rows.append({"step": number, "loss": number / 3})
        done("row")
        save_checkpoint(mount / "checkpoints", op.checkpoint(number))
        done("checkpoint")
        entries = study.entries()
        if number not in entries:
            op.enter_trial(study.optuna_study, number, op.config(number))
        done("entry")
        study.finish(number, op.result(number))
        done("result")
        op.store(mount).ensure(f"train-{number:07d}", lambda number=number: op.activations(number))
        op.save(mount, number % 3)
        done("sae")
        op.store_small(mount, number)
        done("small")


def look(mount: Path, promised: dict[str, int]) -> dict[str, int]:
    """Returns the newest of each kind that is there; fails if one that was promised is not, or is not what it was."""
    found: dict[str, int] = {}
    checkpoint, notes = load_newest(mount / "checkpoints", op.specs())
    assert not notes, f"a checkpoint was damaged: {notes}"
    if checkpoint is not None:
        assert op.same_checkpoint(checkpoint, op.checkpoint(checkpoint.step)), "the checkpoint holds something else"
        found["checkpoint"] = checkpoint.step
    study = op.open_study(mount)
    results, configs = study.results(), study.configs()
    assert all(op.result(index) == result for index, result in results.items()), "a result is another"
    assert all(op.config(index) == config for index, config in configs.items()), "a configuration is another"
    assert sorted(results) == list(range(1, len(results) + 1)), f"a result is missing: {sorted(results)[-5:]}"
    found |= {"result": len(results), "entry": max(configs, default=0)}
    steps = [row["step"] for row in op.rows_file(mount).rows]
    assert steps == list(range(1, len(steps) + 1)), f"a row is missing: {steps[-5:]}"
    found["row"] = len(steps)
    if (mount / "trained.json").exists() or "small" in promised:
        found["small"] = read_stored(mount / "trained.json")["steps"]
    if (mount / "sae").exists() or (mount / "sae.old").exists() or "sae" in promised:
        newest = max(found.get("small", 0), promised.get("sae", 0))
        found["sae"] = next(number for number in (newest, newest + 1, -1) if number % 3 == op.sae_seed(mount))
    for path in (mount / "cache").glob("*/*.arrow"):
        with contextlib.suppress(DamagedFileError):  # not synced: its checksum tells, and it is made again
            assert (open_chunk(path, tokens=op.TOKENS, d_in=op.D_IN) == op.activations(int(path.name[6:13]))).all()
    for kind, number in promised.items():
        assert found.get(kind, 0) >= number, f"{kind} {number} was acknowledged, {found.get(kind)} is there"
    return found


def _problem(work: Callable[[], Any]) -> tuple[str | None, Any]:
    """Returns (what is wrong or None, what `work` returned)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return None, work()
        except (AssertionError, InputError, SurroundingsError, OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"[:500], None


# -- system calls, struck by strace


def strace_all(counter: Counter) -> None:
    """Strikes at each system call of each write: killed at its entry, and failed with EIO and ENOSPC."""
    for name in OPERATIONS:
        with tempfile.TemporaryDirectory(prefix="prolu-strace-") as scratch:
            before = Path(scratch) / "before"
            before.mkdir()
            OPERATIONS[name].prepare(before)
            _, calls = traced(name, before, Path(scratch) / "trial", None)
            for call in sorted(set(calls)):
                for number in range(1, calls.count(call) + 1):
                    for fault in ("signal=KILL", "error=EIO", "error=ENOSPC"):
                        folder = Path(scratch) / "trial"
                        status, _ = traced(name, before, folder, f"{call}:{fault}:when={number}")
                        killed = os.WIFSIGNALED(status)
                        problem, _ = _problem(lambda name=name, folder=folder: _after(name, folder))
                        if problem is None and killed != (fault == "signal=KILL"):
                            problem = f"ended with status {status}"
                        counter.note("system call", 0, problem, operation=name, call=call, number=number, fault=fault)


def _after(name: str, folder: Path) -> None:
    OPERATIONS[name].check(folder)
    OPERATIONS[name].go_on(folder)


# -- a full disk


def full_disk(counter: Counter) -> None:
    """Fills a small tmpfs before each write of one too large for it; then makes room and goes on."""
    for name, operation in OPERATIONS.items():
        for free in (0, 4096, 8192):
            with tempfile.TemporaryDirectory(prefix="prolu-full-") as scratch:
                mount = Path(scratch)
                subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", scratch], check=True, capture_output=True)
                try:
                    folder = mount / "state"
                    folder.mkdir()
                    operation.prepare(folder)
                    problem, told = _problem(
                        lambda operation=operation, mount=mount, free=free: _fill_and_write(operation, mount, free)
                    )
                finally:
                    subprocess.run(["umount", scratch], check=True, capture_output=True)
                counter.note("full disk", 0, problem, operation=name, free=free, told=told)


def _fill_and_write(operation: op.Operation, mount: Path, free: int) -> str:
    """Returns what a write said on a disk with so many bytes left."""
    filler = mount / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(filler, filler.stat().st_size - free)
    told = "nothing, it fitted"
    try:
        operation.act(mount / "state")
    except (InputError, SurroundingsError, OSError) as error:
        told = str(error).replace(str(mount), "DISK")
        assert "full" in told or "No space left" in told, told
    filler.unlink()
    assert operation.check(mount / "state") or told.startswith(("the disk", "cannot write", "[Errno 28]")), told
    operation.act(mount / "state")
    operation.go_on(mount / "state")
    return told


if __name__ == "__main__":
    sys.exit(main())
