"""Where a trial's files lie for the process that runs it: in the sweep's shared folder, or on its node's disk and mirrored."""

import contextlib
import hashlib
import shutil
import threading
import time
from pathlib import Path

from prolu_tune.errors import SurroundingsError
from prolu_tune.results.places import scratch_folder
from prolu_tune.sweep.files import SweepFolder
from prolu_tune.sweep.settings import WorkerSettings
from prolu_tune.sweep.shared import ChangedElsewhereError, MirroredFolder

LOOK_EVERY_S = 1.0
"""How often a trial's folder is looked at for a new checkpoint to mirror."""
PATIENCE_S = 600.0
"""How long a trial that has ended waits for a bucket that is away."""
RETRY_S = 5.0


def mirrored_trial(mirror_uri: str, index: int, config: str) -> str:
    """Returns the URI of a trial's folder. Its configuration is part of it: a folder is never another trial's.

    (A search without a window may, after the head is lost, give an index to another configuration.)
    """
    return f"{mirror_uri}/trials/{index:04d}-{hashlib.sha256(config.encode()).hexdigest()[:12]}"


class TrialPlace:
    """A trial's folder, as a context: brought here when entered if it is mirrored, sent after checkpoints and at the end."""

    def __init__(self, settings: WorkerSettings, index: int, config: str) -> None:
        """Args:
        settings: say where the sweep's files are.
        index: of the trial in its sweep.
        config: of the trial, as JSON.
        """
        self._mirror: MirroredFolder | None = None
        self.folder = SweepFolder(Path(settings.sweep_folder)).trial(index)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._error: SurroundingsError | None = None
        if settings.mirror_uri is not None:
            uri = mirrored_trial(settings.mirror_uri, index, config)
            key = hashlib.sha256(uri.encode()).hexdigest()[:16]
            self.folder = scratch_folder() / "trials" / f"{key}-{index:04d}"
            self._mirror = MirroredFolder(self.folder, uri)

    def __enter__(self) -> "TrialPlace":
        """Raises:
        SurroundingsError: if the bucket does not give what it has.
        """
        if self._mirror is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._mirror.pull()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Sends what there is; a result is only reported once its files are in the bucket."""
        if self._mirror is None:
            return
        self._left.set()
        self._thread.join()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.push()
                return
            except SurroundingsError as error:
                if kind is not None:
                    return  # what was raised first is told
                if isinstance(error, ChangedElsewhereError) or time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)

    def remove(self) -> None:
        """Frees this node's disk of a trial that has ended, if its files are in the bucket."""
        if self._mirror is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def push(self) -> None:
        """Makes the mirror equal to the folder, if there is one.

        Raises:
            SurroundingsError: if the bucket does not take it.
        """
        if self._mirror is not None:
            self._mirror.push()

    def _run(self) -> None:
        """Sends the folder when a checkpoint or the end of training has been added; an outage of the bucket stops nothing."""
        sent: list[str] = []
        while not self._left.wait(LOOK_EVERY_S):
            present = sorted(path.name for path in self.folder.glob("checkpoints/*.safetensors"))
            present += [path.name for path in self.folder.glob("trained.json")]
            if present != sent:
                with contextlib.suppress(SurroundingsError):
                    self.push()
                    sent = present
