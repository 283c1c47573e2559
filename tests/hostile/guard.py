"""Watches a reader: what it raises, what it runs, where it writes, how much memory it takes and how long."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SECONDS = 10.0
"""Of CPU time; a reader of one small file that takes longer hangs. Whoever started the process watches the clock."""
FLOOR_BYTES = 8 << 20
"""What a reader may take besides ten times the file: Python's own objects, an exception with its traceback, a page here
and there. Ten times a file of 500 bytes is less than one message."""
ALWAYS = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn"),
    *(
        "socket.connect",
        "socket.getaddrinfo",
        "socket.bind",
        "ctypes.dlopen",
        "pickle.find_class",
        "marshal.loads",
        "marshal.load",
    ),
}
WRITES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.truncate", "shutil.move"}


class Hang(BaseException):
    """A reader took too long."""


class Guard:
    """One per process: Python's audit hooks stay for good."""

    def __init__(self, folder: Path) -> None:
        """Watches; writing is allowed below `folder` only."""
        self._folder = str(folder)
        self._armed = False
        self.violations: list[str] = []
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._clear = os.open("/proc/self/clear_refs", os.O_WRONLY)
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGPROF, self._hang)

    def _hang(self, *_: Any) -> None:
        raise Hang

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        if event in ALWAYS or (event in ("exec", "compile") and not _importing()):
            if not (event.startswith("marshal") and _importing()):
                self.violations.append(f"{event} {str(arguments)[:200]}")
        elif event == "import" and "canary" in str(arguments[0]):
            self.violations.append(f"import {arguments[0]}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not self._inside(path):
                self.violations.append(f"opens {path!r} for writing")
        elif event in WRITES:
            base = next((Path(f"/proc/self/fd/{fd}").readlink() for fd in arguments[1:] if _is_folder(fd)), Path.cwd())
            paths = [base / os.fsdecode(path) for path in arguments if isinstance(path, str | bytes | os.PathLike)]
            outside = [str(path) for path in paths if not self._inside(path)]
            if outside:
                self.violations.append(f"{event} {outside}")

    def _inside(self, path: Any) -> bool:
        if isinstance(path, int):
            return True
        with contextlib.suppress(TypeError, ValueError):
            return os.path.realpath(os.fsdecode(path)).startswith(self._folder)
        return False

    def _memory(self, field: bytes) -> int:
        text = os.pread(self._status, 4096, 0)
        at = text.index(field)
        return int(text[at + len(field) : text.index(b"kB", at)]) << 10

    @contextlib.contextmanager
    def watching(self, size: int) -> Iterator[None]:
        """Everything inside must keep to the rules, for an input of `size` bytes.

        Raises:
            AssertionError: if it did not.
        """
        os.write(self._clear, b"5")  # the peak starts anew
        before = self._memory(b"VmRSS:")
        started = time.process_time()
        self.violations.clear()
        self._armed = True
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            yield
        except Hang:
            raise AssertionError(f"hung: {time.process_time() - started:.1f} s of CPU") from None
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._armed = False
        taken = self._memory(b"VmHWM:") - before
        assert not self.violations, self.violations
        assert taken <= 10 * size + FLOOR_BYTES, f"took {taken:,} bytes for an input of {size:,}"


def refused_cleanly(guard: Guard, size: int, read: Callable[[], str], allowed: tuple[type[Exception], ...]) -> str:
    """Returns what `read` says, or `refused`.

    Raises:
        AssertionError: if it raised anything else, or broke a rule.
    """
    with guard.watching(size):
        try:
            return read()
        except allowed as error:
            assert str(error).strip(), "refused without a word"
            return "refused"
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}") from error


def _is_folder(descriptor: Any) -> bool:
    """Whether an argument of an event is a folder that paths are relative to; modes and -1 are no descriptors."""
    return isinstance(descriptor, int) and descriptor > 2 and Path(f"/proc/self/fd/{descriptor}/.").is_dir()


def _importing() -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
