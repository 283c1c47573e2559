"""Processes of a sweep under torture: found by role to be killed, and counted when none must be left."""

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil

ROLES: dict[str, tuple[str, ...]] = {
    "trial": ("ray::ImplicitFunc", "ray::ray_trial"),
    "worker": ("ray::IDLE",),
    "node": ("ray::NodeActor",),
    "raylet": ("raylet",),
    "gcs": ("gcs_server",),
}
"""How the titles of Ray's processes begin, by what they do for us."""


def with_role(driver: int, role: str) -> list[psutil.Process]:
    """Returns the driver's descendants with a role."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if _title(process).startswith(ROLES[role]):
                    found.append(process)
    return found


def wait_for_role(driver: int, role: str, *, within_s: float) -> list[psutil.Process]:
    """Returns the driver's descendants with a role once there are any; none if the driver ends or time runs out."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and psutil.pid_exists(driver):
        if found := with_role(driver, role):
            return found
        time.sleep(0.2)
    return []


def kill_all(driver: int) -> None:
    """Sends SIGKILL to a driver and its descendants, as a power cut would."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(driver)
        for victim in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()


def of_folder(folder: Path, *, besides: set[int]) -> list[psutil.Process]:
    """Returns the processes that have the folder among their arguments, open files or working folder, or in `PROLU_TORTURE`."""
    found = []
    for process in psutil.process_iter():
        if process.pid in besides or process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and _uses(process, folder):
                found.append(process)
    return found


def wait_for_none(folder: Path, *, besides: set[int], within_s: float) -> list[str]:
    """Returns what processes of the folder are left after `within_s`; at once when there are none."""
    deadline = time.monotonic() + within_s
    while left := of_folder(folder, besides=besides):
        if time.monotonic() > deadline:
            return [f"{process.pid} {_title(process)}" for process in left if process.is_running()]
        time.sleep(0.5)
    return []


def stop_for(pid: int, seconds: float) -> None:
    """Stops a process with SIGSTOP and lets it go on after a while."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)


def _uses(process: psutil.Process, folder: Path) -> bool:
    if process.environ().get("PROLU_TORTURE") == str(folder) or str(folder) in " ".join(process.cmdline()):
        return True
    return _title(process).startswith("ray::") and any(str(folder) in file.path for file in process.open_files())


def _title(process: psutil.Process) -> str:
    name = process.name()
    return name if name in ("raylet", "gcs_server") else (process.cmdline() or [name])[0]
