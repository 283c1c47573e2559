"""Ray on this machine: a folder of its own per driver, by which its processes are known, and a guard that ends them.

A killed driver leaves some of Ray's processes behind. So the folder is noted in the sweep's folder before anything is
started in it; a guard, this file as a program, waits for the driver's death and ends what is left; and where the guard
died too, the next driver of the sweep does. Ours are told from others' by the folder alone, never by name or number:
it stands in their environment, or, where a process has overwritten that with its title, among its open files.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

MARK = "PROLU_TUNE_RAY_FOLDER"
"""Environment variable of all of Ray's processes: the folder."""
VITAL = ("raylet", "gcs_server")
"""Without one of these, calls into Ray wait for ever."""
LOOK_EVERY_S = 0.5
END_S = 20.0
"""How long the guard goes on ending processes; each look takes a few hundredths of a second."""
LONGEST_TEMPORARY = 20
"""Ray puts sockets 64 characters below its folder, that is 21 below this one, and a path to a socket may have 107."""


class LocalRay:
    """The folder of one driver's Ray, and the guard. `ray_folder` is where Ray may put things."""

    def __init__(self, note: Path) -> None:
        """Ends what an earlier driver left on this machine, and gets a folder and a guard ready.

        Args:
            note: the file in which the folder is noted; the caller holds the sweep's lock.
        """
        self._note = note
        end_leftovers(note)
        self.folder = _temporary() / f"prolu-ray-{secrets.token_hex(4)}"
        note.write_text(json.dumps({"host": socket.gethostname(), "folder": str(self.folder)}), encoding="utf-8")
        self.folder.mkdir(mode=0o700)
        # Ray opens the folder it is given to everyone; nobody else comes this far.
        self.ray_folder = self.folder / "r"
        self.ray_folder.mkdir()
        self._watching = threading.Event()
        os.environ[MARK] = str(self.folder)
        # -P: the folder of this file is no place to import from.
        command = [sys.executable, "-P", __file__, str(self.folder)]
        self._guard = subprocess.Popen(  # noqa: S603  our own interpreter and file
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def watch(self, lost: Callable[[str], None]) -> None:
        """Has `lost` called, from a thread, with the name of one of `VITAL` that ended; for the Ray that starts now."""
        self._watching.set()
        threading.Thread(target=self._watch, args=(lost,), name="vital", daemon=True).start()

    def _watch(self, lost: Callable[[str], None]) -> None:
        driver, seen = psutil.Process(), dict[str, psutil.Process]()
        while self._watching.is_set():
            if len(seen) < len(VITAL):
                seen |= _vital_children(driver)
            gone = [name for name, process in seen.items() if not _lives(process)]
            if gone and self._watching.is_set():
                lost(gone[0])
                return
            time.sleep(LOOK_EVERY_S)

    def unwatch(self) -> None:
        """Lets Ray's processes end without a call."""
        self._watching.clear()

    def end(self) -> None:
        """Ends what is left of Ray and removes its folder."""
        self.unwatch()
        os.environ.pop(MARK, None)
        end_processes(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        self._guard.wait()
        self._note.unlink(missing_ok=True)


def end_leftovers(note: Path) -> int:
    """Returns how many processes an earlier driver had left on this machine; they are ended, their folder is gone."""
    try:
        noted = json.loads(note.read_bytes())
        folder = Path(noted["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    if noted.get("host") != socket.gethostname() or not folder.name.startswith("prolu-ray-"):
        return 0
    ended = end_processes(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return ended


def end_processes(folder: Path, *, within_s: float = END_S) -> int:
    """Returns how many of the folder's processes were ended; looks again until none is left."""
    ended: set[psutil.Process] = set()
    deadline = time.monotonic() + within_s
    while (found := processes_of(folder)) and time.monotonic() < deadline:
        for process in found:
            try:
                process.kill()
            except psutil.Error:
                continue
        ended |= set(found)
        psutil.wait_procs(found, timeout=1.0)
    return len(ended)


def end_children() -> None:
    """Ends the processes that this one has started, the guard excepted, who sees to those that lost their parent."""
    for child in psutil.Process().children(recursive=True):
        try:
            if __file__ not in child.cmdline():
                child.kill()
        except psutil.Error:
            continue


def processes_of(folder: Path) -> list[psutil.Process]:
    """Returns the living processes of the Ray in `folder`, this one excepted."""
    return [
        process
        for process in psutil.process_iter()
        if process.pid != os.getpid() and _belongs(process, folder) and process.status() != psutil.STATUS_ZOMBIE
    ]


def _belongs(process: psutil.Process, folder: Path) -> bool:
    try:
        if process.environ().get(MARK) == str(folder):
            return True
        titled = process.name().startswith("ray::") or any("ray::" in part for part in process.cmdline()[:1])
        return titled and any(Path(file.path).is_relative_to(folder) for file in process.open_files())
    except psutil.Error:
        return False


def _vital_children(process: psutil.Process) -> dict[str, psutil.Process]:
    """Returns the living ones by name: those of a driver that this process was before it was replaced stay as zombies."""
    found = {}
    for child in process.children():
        try:
            if child.name() in VITAL and _lives(child):
                found[child.name()] = child
        except psutil.Error:
            continue
    return found


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _temporary() -> Path:
    for name in (os.environ.get("RAY_TMPDIR"), tempfile.gettempdir()):
        if name and len(name) <= LONGEST_TEMPORARY:
            return Path(name)
    return Path("/tmp")  # noqa: S108  the folder in it has a random name and is ours alone


def _guard(folder: Path) -> None:
    """Waits for the end of standard input, which the driver's death is, however it dies."""
    sys.stdin.read()
    while True:
        end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)
        # One that was just being started shows itself a little later.
        time.sleep(1.0)
        if not processes_of(folder):
            return


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))
