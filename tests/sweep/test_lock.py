"""Two drivers of one sweep, as real processes."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import sys, time
from pathlib import Path
from prolu_tune.errors import SurroundingsError
from prolu_tune.sweep.files import SweepFolder, SweepLock
lock = SweepLock(SweepFolder(Path(sys.argv[1])))
sys.stdin.readline()
try:
    lock.acquire()
except SurroundingsError as error:
    print(f"refused: {error}", flush=True)
else:
    print("holds", flush=True)
    time.sleep(600)
"""
ROUNDS = 5


@pytest.fixture
def drivers(tmp_path: Path):
    started: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def _go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def _says(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_two_at_once_exactly_one_holds_the_sweep_and_the_other_names_it_in_no_time(drivers) -> None:
    """The dead holder of the round before is no obstacle: its lock went with it."""
    for _ in range(ROUNDS):
        both = [drivers(), drivers()]
        time.sleep(0.5)
        started = time.monotonic()
        for process in both:
            _go(process)
        said = [_says(process) for process in both]
        assert time.monotonic() - started < 5
        assert sorted(word.split(":")[0] for word in said) == ["holds", "refused"]
        holder = both[said.index("holds")]
        refusal = next(words for words in said if words != "holds")
        assert f"process {holder.pid} on {socket.gethostname()};" in refusal
        holder.kill()
        holder.wait()


def test_a_later_driver_is_refused_with_host_and_process_of_the_first(drivers) -> None:
    first, second = drivers(), drivers()
    _go(first)
    assert _says(first) == "holds"
    _go(second)
    assert f"process {first.pid} on {socket.gethostname()}" in _says(second)
