"""Whole sweeps with real Ray and one fault each that is not a kill: disk full, lack of memory, MLflow away, secrets, sockets.

Minutes long; `scripts/torture.py` has the kills.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from torture import digest, processes
from torture.history import Attempt, History, history

SPACE = Path(__file__).parent / "spaces" / "grid.yaml"
CANARY = "canary-4711-in-the-mine"
SECRETS = {
    "AWS_ACCESS_KEY_ID": CANARY,
    "AWS_SECRET_ACCESS_KEY": CANARY,
    "HF_TOKEN": CANARY,
    "MLFLOW_TRACKING_PASSWORD": CANARY,
    "MLFLOW_TRACKING_USERNAME": "user",
    "PROLU_CANARY": CANARY,
}
CGROUP = Path("/sys/fs/cgroup/memory")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Short, because Ray puts sockets below it."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed() -> Iterator[dict[str, str]]:
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    with history(folder / "h", SPACE, seed=0) as made:
        last = made.finish()
        assert not made.complaints(last)
        yield made.result(last)
    shutil.rmtree(folder, ignore_errors=True)


def _wait_for(attempt: Attempt, words: str) -> None:
    deadline = time.monotonic() + 600
    while not any(words in line for line in attempt.lines):
        assert attempt.process.poll() is None, attempt.lines
        assert time.monotonic() < deadline, attempt.lines
        time.sleep(0.02)


def _assert_equal(made: History, last: Attempt, undisturbed: dict[str, str]) -> None:
    assert digest.differences(undisturbed, made.result(last)) == []
    assert made.complaints(last) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("when", ["from the start", "trial 1/4 done", "activations, chunk 1"])
def test_a_full_disk_is_told_and_the_sweep_goes_on_when_there_is_room(when: str, short_folder: Path, undisturbed) -> None:
    storage = short_folder / "h" / "s"
    with history(short_folder / "h", SPACE, seed=0) as made:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(storage)], check=True)
        try:
            if when == "from the start":
                _fill(storage, leave=600_000)
            attempt = made.start()
            if when != "from the start":
                _wait_for(attempt, when)
                _fill(storage, leave=0)
            code = attempt.wait(600)
            assert code == 3, attempt.lines
            assert "is full" in "\n".join(attempt.lines), attempt.lines
            assert "Traceback" not in "\n".join(attempt.lines)
            (storage / "filler").unlink()
            last = made.finish()
            _assert_equal(made, last, undisturbed)
        finally:
            subprocess.run(["umount", "-l", str(storage)], check=True)


def _fill(folder: Path, *, leave: int) -> None:
    """Fills a file system but for some bytes; what others free meanwhile is filled again."""
    with (folder / "filler").open("ab", buffering=0) as out:
        for size in (1_000_000, 4096):
            while shutil.disk_usage(folder).free > leave + size:
                try:
                    out.write(bytes(size))
                except OSError:
                    break
    assert shutil.disk_usage(folder).free <= leave + 8192


@pytest.mark.skipif(os.geteuid() != 0 or not (CGROUP / "memory.limit_in_bytes").exists(), reason="needs a memory cgroup")
def test_a_trial_that_the_kernel_ends_for_memory_is_told_and_not_repeated(short_folder: Path, undisturbed) -> None:
    group = CGROUP / f"prolu-torture-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text("1000000")
        with history(short_folder / "h", SPACE, seed=0) as made:
            attempt = made.start()
            _wait_for(attempt, "started")
            victim = processes.wait_for_role(attempt.process.pid, "trial", within_s=60)[0]
            deadline = time.monotonic() + 60
            while "ImplicitFunc" not in " ".join(victim.cmdline()) and time.monotonic() < deadline:
                victim = processes.with_role(attempt.process.pid, "trial")[0]
            (group / "cgroup.procs").write_text(str(victim.pid))
            assert attempt.wait(600) == 1, attempt.lines
            told = [line for line in attempt.lines if "lack of memory" in line]
            assert told, attempt.lines
            assert "GB" in told[0] and "max_concurrent_trials" in told[0]
            assert sum("lost its process" in line for line in attempt.lines) == 1
            retried = made.start("--retry-failed")
            assert retried.wait(600) == 0, retried.lines
            _assert_equal(made, retried, undisturbed)
    finally:
        group.rmdir()


def test_mlflow_that_is_away_stops_nothing_and_gets_everything_exactly_once(short_folder: Path) -> None:
    with history(short_folder / "here", SPACE, seed=0, server=True) as made:
        expected = made.result(made.finish())
    with history(short_folder / "h", SPACE, seed=1, server=True) as made:
        assert made.server is not None
        made.server.proxy.share = 0.3
        attempt = made.start()
        _wait_for(attempt, "started")
        made.server.proxy.away = True
        _wait_for(attempt, "trial 4/4 done")
        made.server.proxy.away = False
        assert attempt.wait(600) == 0, attempt.lines
        _assert_equal(made, attempt, expected)


def test_no_secret_leaves_the_environment_and_nothing_listens_beyond_loopback(short_folder: Path) -> None:
    beyond: set[str] = set()
    told: set[str] = set()
    with history(short_folder / "h", SPACE, seed=0, server=True) as made:
        assert made.server is not None
        uri = f"http://user:{CANARY}@127.0.0.1:{made.server.proxy.port}"
        attempt = made.start(environment=SECRETS | {"PROLU_TRACKING_URI": uri})
        while attempt.process.poll() is None:
            beyond |= _listening_beyond_loopback(made)
            told |= _with_canary(made)
            time.sleep(0.3)
        assert attempt.wait(10) == 0, attempt.lines
        told |= _with_canary(made)
        assert CANARY not in attempt.out + "\n".join(attempt.lines)
    assert beyond == set()
    assert told == set()
    assert ((made.storage / "ray_token").stat().st_mode & 0o777) == 0o600


def _listening_beyond_loopback(made: History) -> set[str]:
    found = set()
    for process in processes.of_folder(made.folder, besides=set()):
        try:
            for connection in process.net_connections():
                if connection.status == psutil.CONN_LISTEN and not _is_loopback(connection.laddr.ip):
                    found.add(f"{process.name()} on {connection.laddr.ip}")
        except psutil.Error:
            continue
    return found


def _is_loopback(address: str) -> bool:
    return address.removeprefix("::ffff:").startswith("127.") or address == "::1"


def _with_canary(made: History) -> set[str]:
    """Returns files and arguments in which the secret stands."""
    found = set()
    for path in made.folder.rglob("*"):
        try:
            if path.is_file() and not path.is_socket() and CANARY.encode() in path.read_bytes():
                found.add(str(path.relative_to(made.folder)))
        except OSError:
            continue
    for process in processes.of_folder(made.folder, besides=set()):
        try:
            if CANARY in " ".join(process.cmdline()):
                found.add(f"arguments of {process.name()}")
        except psutil.Error:
            continue
    return found


def test_of_two_drivers_started_at_once_exactly_one_goes_on(short_folder: Path) -> None:
    with history(short_folder / "h", SPACE, seed=0) as made:
        both = [made.start(), made.start()]
        started = time.monotonic()
        while all(attempt.process.poll() is None for attempt in both):
            assert time.monotonic() - started < 120
            time.sleep(0.02)
        loser, winner = sorted(both, key=lambda attempt: attempt.process.poll() is None)
        assert loser.wait(10) == 3
        assert f"process {winner.process.pid} on {socket.gethostname()}" in loser.lines[-1]
        assert winner.wait(600) == 0
        assert made.complaints(winner) == []
