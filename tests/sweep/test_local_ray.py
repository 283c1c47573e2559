"""Real processes that stand for Ray's: ours are ended, others' never."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from prolu_tune.sweep import local_ray
from prolu_tune.sweep.local_ray import MARK, LocalRay, end_leftovers, end_processes, processes_of

SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def _start(code: str, mark: Path | None, *arguments: str) -> "subprocess.Popen[bytes]":
    environment = {key: value for key, value in os.environ.items() if key != MARK}
    if mark is not None:
        environment[MARK] = str(mark)
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment)


def _ended(process: "subprocess.Popen[bytes]") -> bool:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        return False
    return True


def test_processes_with_the_folder_in_their_environment_are_ours_and_no_others(tmp_path: Path, started: list) -> None:
    ours, folder = _start(SLEEP, tmp_path / "prolu-ray-1"), tmp_path / "prolu-ray-1"
    others = [_start(SLEEP, tmp_path / "prolu-ray-2"), _start(SLEEP, None, str(folder / "session" / "logs"))]
    started += [ours, *others]
    time.sleep(0.5)
    assert [process.pid for process in processes_of(folder)] == [ours.pid]
    assert end_processes(folder) == 1
    assert _ended(ours)
    assert all(process.poll() is None for process in others)


def test_a_process_whose_title_has_taken_its_environment_is_known_by_its_open_files(tmp_path: Path, started: list) -> None:
    """Ray's agents do that: their environment can no longer be read."""
    folder = tmp_path / "prolu-ray-1"
    folder.mkdir()
    code = (
        "import sys, time; log = open(sys.argv[1], 'w'); from setproctitle import setproctitle;"
        "setproctitle('ray::DashboardAgent'); log.write('up'); log.flush(); time.sleep(600)"
    )
    if subprocess.run([sys.executable, "-c", "import setproctitle"], capture_output=True, check=False).returncode:
        pytest.skip("no setproctitle outside of Ray")
    started.append(_start(code, None, str(folder / "agent.log")))
    deadline = time.monotonic() + 20
    while not (folder / "agent.log").exists() or not (folder / "agent.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert [process.pid for process in processes_of(folder)] == [started[0].pid]


def test_what_a_dead_driver_left_is_ended_at_the_next_start_and_its_folder_goes(tmp_path: Path, started: list) -> None:
    folder, note = tmp_path / "prolu-ray-1", tmp_path / "local_ray.json"
    folder.mkdir()
    note.write_text(json.dumps({"host": socket.gethostname(), "folder": str(folder)}))
    started.append(_start(SLEEP, folder))
    assert end_leftovers(note) == 1
    assert _ended(started[0])
    assert not folder.exists()


@pytest.mark.parametrize(
    "note",
    [b"", b"{", b"[]", b'{"host": "elsewhere", "folder": "FOLDER"}', b'{"host": "HERE", "folder": "/"}', b'{"host": 3}'],
)
def test_a_note_that_is_damaged_or_another_machines_ends_nothing(note: bytes, tmp_path: Path, started: list) -> None:
    folder = tmp_path / "prolu-ray-1"
    folder.mkdir()
    started.append(_start(SLEEP, folder))
    file = tmp_path / "local_ray.json"
    file.write_bytes(note.replace(b"FOLDER", str(folder).encode()).replace(b"HERE", socket.gethostname().encode()))
    assert end_leftovers(file) == 0
    assert folder.exists()
    assert started[0].poll() is None


def test_the_guard_ends_everything_when_the_driver_is_killed(tmp_path: Path, started: list) -> None:
    code = (
        "import subprocess, sys, time; from pathlib import Path; from prolu_tune.sweep.local_ray import LocalRay;"
        f"ray = LocalRay(Path(sys.argv[1])); subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True);"
        "print(ray.folder, flush=True); time.sleep(600)"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "note")], stdout=subprocess.PIPE, env=os.environ | {"RAY_TMPDIR": "/tmp"}
    )
    started.append(driver)
    assert driver.stdout is not None
    folder = Path(driver.stdout.readline().decode().strip())
    assert folder.stat().st_mode & 0o777 == 0o700
    children = psutil.Process(driver.pid).children(recursive=True)
    assert len(children) == 2
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert not folder.exists()


def test_rays_sockets_fit_below_the_longest_folder_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = "/" + "t" * (local_ray.LONGEST_TEMPORARY - 1)
    for name, taken in ((longest, longest), (longest + "t", None)):
        monkeypatch.setenv("RAY_TMPDIR", name)
        assert (str(local_ray._temporary()) == name) == (taken is not None)
    socket_path = f"{longest}/prolu-ray-01234567/r/session_2026-11-22_18-17-57_610804_1448300/sockets/plasma_store"
    assert len(socket_path) <= 107


def test_a_vital_process_that_dies_is_told_and_one_that_was_meant_to_end_is_not(tmp_path: Path, monkeypatch, started) -> None:
    monkeypatch.setattr(local_ray, "LOOK_EVERY_S", 0.05)
    sleep = tmp_path / "raylet"
    sleep.symlink_to("/bin/sleep")
    for meant in (False, True):
        ray, lost = LocalRay(tmp_path / "note"), list[str]()
        try:
            ray.watch(lost.append)
            started.append(subprocess.Popen([str(sleep), "600"]))
            time.sleep(0.5)
            if meant:
                ray.unwatch()
            started[-1].kill()
            time.sleep(0.5)
            assert lost == ([] if meant else ["raylet"])
        finally:
            ray.end()
    assert not (tmp_path / "note").exists()
