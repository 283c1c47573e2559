"""A write under strace, which strikes at one of its system calls; for `scripts/torture_files.py`."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from events.operations import OPERATIONS
from prolu_tune.errors import InputError, SurroundingsError

CALLS = [
    *("openat", "creat", "write", "pwrite64", "writev", "fsync", "fdatasync", "ftruncate", "truncate", "rename", "renameat"),
    *("renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "symlink", "symlinkat", "link", "linkat"),
]


def traced(name: str, before: Path, folder: Path, inject: str | None) -> tuple[int, list[str]]:
    """Returns (wait status, system calls in order) of a write in a process of its own, with a fault injected."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(before, folder, symlinks=True)
    warm = folder.with_name("warm")
    shutil.rmtree(warm, ignore_errors=True)
    shutil.copytree(before, warm, symlinks=True)
    child = os.fork()
    if child == 0:
        _act_alone(name, warm, folder)
    os.waitpid(child, os.WUNTRACED)
    log = folder.with_name("strace.txt")
    command = ["strace", "-f", "-o", str(log), "-e", "trace=" + ",".join(CALLS), "-p", str(child)]
    if inject is not None:
        command += ["-e", f"inject={inject}"]
    tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    status = Path(f"/proc/{child}/status")
    while not re.search(r"TracerPid:\t[1-9]", status.read_text()) and tracer.poll() is None:
        time.sleep(0.005)
    os.kill(child, signal.SIGCONT)
    _, ended = os.waitpid(child, 0)
    tracer.wait(timeout=30)
    return ended, re.findall(r"^\d+\s+([a-z0-9]+)\(", log.read_text(), flags=re.MULTILINE)


def _act_alone(name: str, warm: Path, folder: Path) -> None:
    """In a forked process: does a write once to load all it needs, waits to be traced, does it on the files that count."""
    status = 1
    try:
        OPERATIONS[name].act(warm)
        os.kill(os.getpid(), signal.SIGSTOP)
        OPERATIONS[name].act(folder)
        status = 0
    except (InputError, SurroundingsError, OSError):
        status = 0
    finally:
        os._exit(status)
