"""What a trial's process notes of itself in the trial's folder, so that the next one knows how the last one ended.

A process that is ended for lack of memory would be so again. The kernel's killer leaves no trace in the process, but
the kernel counts what it has killed: a count that has risen since the lost process began is the trace.
"""

import json
import resource
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

LOOK_EVERY_S = 0.5
NOTE = "attempt.json"
MONITOR_NOTE = "lack_of_memory"


class Attempt:
    """One process's work on a trial, from entering to leaving; a context manager.

    Args:
        folder: the trial's.
        driver: tells drivers apart: what was lost along with its driver says nothing about the trial.
    """

    def __init__(self, folder: Path, driver: str) -> None:
        """Looks at what the process before this one has left; see `lack_of_memory`."""
        self._path = folder / NOTE
        self._mine: dict[str, Any] = {"driver": driver, "host": socket.gethostname(), "kills": memory_kills(), "bytes": 0}
        self.lack_of_memory = self._judge(_read(self._path), folder / MONITOR_NOTE)
        """One sentence if the process before this one was ended for lack of memory, else None."""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> "Attempt":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._note()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Reached by a process that was not killed, whatever became of the trial."""
        self._done.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _judge(self, before: dict[str, Any], monitor_note: Path) -> str | None:
        same = before.get("driver") == self._mine["driver"] and before.get("host") == self._mine["host"]
        killed = "kills" in before and (self._mine["kills"] or 0) > before["kills"]
        told = monitor_note.exists()
        monitor_note.unlink(missing_ok=True)
        if not (told or (same and killed)):
            return None
        return lack_of_memory(int(before.get("bytes", 0)))

    def _run(self) -> None:
        while not self._done.wait(LOOK_EVERY_S):
            if peak_memory() > 1.05 * self._mine["bytes"]:
                self._note()

    def _note(self) -> None:
        self._mine["bytes"] = peak_memory()
        # In place and not synced: a note that a crash of the machine damages is none, which is right.
        self._path.write_text(json.dumps(self._mine), encoding="utf-8")


def lack_of_memory(used_bytes: int) -> str:
    """Returns what to say of a trial whose process was ended for lack of memory."""
    total = psutil.virtual_memory().total
    used = f"it had used {used_bytes / 1e9:.2f} GB when last seen" if used_bytes else "what it used is not known"
    return (
        f"its process was ended for lack of memory: {used}, this machine has {total / 1e9:.1f} GB for all; lower "
        "resources.max_concurrent_trials, sae.d_sae or training.batch_size, or free memory; then --retry-failed"
    )


def out_of_memory(error: BaseException) -> str | None:
    """Returns what to say if an error is one of lack of memory, on a GPU or here, with what was asked for; else None."""
    text = " ".join(str(error).split())
    if type(error).__name__ in ("OutOfMemoryError", "AcceleratorError") and "out of memory" in text.lower():
        return f"{text[:300]}; lower training.batch_size or sae.d_sae, or raise resources.gpus_per_trial; then --retry-failed"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        wanted = text[text.find("DefaultCPUAllocator") :][:200] or "no memory was left"
        return f"{wanted}; it had used {peak_memory() / 1e9:.2f} GB; " + lack_of_memory(0).split("; ", 1)[1]
    return None


def note_lack_of_memory(folder: Path) -> None:
    """Has the trial's next process know that Ray's memory monitor ended the last one."""
    try:
        (folder / MONITOR_NOTE).touch()
    except OSError:
        return  # then it is a crash like others, of which there may be only so many


def peak_memory() -> int:
    """Returns the largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_kills() -> int | None:
    """Returns how many processes this machine's kernel has ended for lack of memory since it started, if it says so."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or not all(isinstance(found.get(key), int) for key in ("kills", "bytes")):
        return {}
    return found
