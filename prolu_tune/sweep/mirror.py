"""A sweep in a bucket: the driver's own files are mirrored there, and one driver at a time may run it.

BUCKET/sweeps/NAME/driver.json                  who runs it, and which of its lives (`--fresh` begins one) is the present
BUCKET/sweeps/NAME/ID/                          space, study, marker of the end; MirroredFolder of the driver's folder
BUCKET/sweeps/NAME/ID/trials/0007-DIGEST/       MirroredFolder of a trial's folder
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from prolu_tune.config.trial import TrialConfig
from prolu_tune.errors import SurroundingsError
from prolu_tune.sweep.files import SweepFolder
from prolu_tune.sweep.place import mirrored_trial
from prolu_tune.sweep.shared import MirroredFolder

FILES = ("space.json", "study.journal", "tracked")
BEAT_S = 5.0
"""How often a driver shows that it lives, and sends its files if they changed."""
SILENCE_S = 20.0
"""How long another machine's driver has to be silent before its sweep may be taken over."""
ROWS_EVERY_S = 60.0
"""How often the rows of a running trial are brought here; they are sent with its checkpoints."""


class SweepMirror:
    """The driver's side of a sweep in a bucket."""

    def __init__(self, folder: SweepFolder, storage_uri: str) -> None:
        """Args:
        folder: the sweep's folder on this machine.
        storage_uri: of the storage, below which all sweeps lie.

        Raises:
            InputError: if the URI is none that can be opened.
        """
        self._folder = folder
        self._uri = f"{storage_uri}/sweeps/{folder.root.name}"
        self._top = MirroredFolder(folder.root, self._uri)
        self._record: dict[str, Any] = {}
        self._rows_at: dict[int, float] = {}
        self._writing = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def uri(self) -> str:
        """Where the present life of the sweep lies."""
        return f"{self._uri}/{self._record['id']}"

    def take(self) -> None:
        """Makes this process the sweep's driver, and brings its files here if the bucket has newer ones.

        Raises:
            SurroundingsError: if another driver runs the sweep, or the bucket does not answer.
        """
        before = self._read_record()
        if before and not before["released"] and before["host"] != socket.gethostname():
            self._wait_for_silence(before)  # on this machine the lock has told already
        sweep_id, epoch = (before["id"], before["epoch"]) if before else (secrets.token_hex(4), 0)
        self._record = {
            "id": sweep_id,
            "epoch": epoch + 1,
            "beat": 0,
            "released": False,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "token": secrets.token_hex(8),
        }
        self._write_record()
        self._files().pull()

    def begin_anew(self) -> None:
        """Gives the sweep another life; what was is kept in the bucket."""
        self._record["id"] = secrets.token_hex(4)
        self._write_record()

    def start(self, stop_for: Callable[[str], None], note: Callable[[str], None]) -> None:
        """Keeps the bucket up to date from a thread.

        Args:
            stop_for: told why this driver must end: another one has taken the sweep.
            note: told when the bucket is away and when it is back.
        """
        self._thread = threading.Thread(target=self._run, args=(stop_for, note), name="mirror", daemon=True)
        self._thread.start()

    def push(self) -> None:
        """Sends the driver's files, if they changed.

        Raises:
            SurroundingsError: if the bucket does not take them, or the sweep is another driver's by now.
        """
        with self._writing:
            found = self._read_record()
            if found is None or found["token"] != self._record["token"]:
                raise TakenOverError(
                    f"the driver on {found['host'] if found else 'another machine'} has taken over this sweep; this one ends"
                )
            self._files().push()
            self._record["beat"] += 1
            self._write_record()

    def release(self) -> None:
        """Sends the last changes and lets go of the sweep.

        Raises:
            SurroundingsError: if the bucket does not take them; they wait on this machine's disk.
        """
        self._done.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._record and not self._record["released"]:
            self.push()
            self._record["released"] = True
            self._write_record()

    def fetch_trial(self, index: int, config: TrialConfig) -> None:
        """Brings a trial's files into the driver's folder."""
        self._trial(index, config).pull()

    def rows_due(self, index: int) -> bool:
        """Returns whether it is time to bring the rows of a running trial."""
        now = time.monotonic()
        if now - self._rows_at.setdefault(index, now) < ROWS_EVERY_S:
            return False
        self._rows_at[index] = now
        return True

    def fetch_rows(self, index: int, config: TrialConfig) -> bool:
        """Brings the rows of a running trial; returns whether there are any."""
        return self._trial(index, config).fetch("metrics.jsonl")

    def _trial(self, index: int, config: TrialConfig) -> MirroredFolder:
        return MirroredFolder(self._folder.trial(index), mirrored_trial(self.uri, index, config.model_dump_json()))

    def _files(self) -> MirroredFolder:
        return MirroredFolder(self._folder.root, self.uri, names=FILES)

    def _wait_for_silence(self, before: dict[str, Any]) -> None:
        deadline = time.monotonic() + SILENCE_S
        while time.monotonic() < deadline:
            time.sleep(BEAT_S / 2)
            found = self._read_record()
            if found is None or found["released"]:
                return
            if (found["token"], found["beat"]) != (before["token"], before["beat"]):
                raise SurroundingsError(
                    f"another prolu-tune runs this sweep: process {found['pid']} on {found['host']}; "
                    "wait for it or stop it, then run the same command again"
                )

    def _run(self, stop_for: Callable[[str], None], note: Callable[[str], None]) -> None:
        away = False
        while not self._done.wait(BEAT_S):
            try:
                self.push()
            except TakenOverError as error:
                stop_for(str(error))
                return
            except SurroundingsError as error:
                if not away:
                    note(f"{error}; training goes on")
                away = True
                continue
            if away:
                note("the bucket takes files again")
            away = False

    def _read_record(self) -> dict[str, Any] | None:
        content = self._top.read("driver.json")
        if content is None:
            return None
        try:
            record = json.loads(content)
            return {key: record[key] for key in ("id", "epoch", "beat", "released", "host", "pid", "token")}
        except (ValueError, KeyError, TypeError) as error:
            raise SurroundingsError(f"{self._uri}/driver.json is damaged; remove it to begin the sweep anew") from error

    def _write_record(self) -> None:
        self._top.write("driver.json", json.dumps(self._record).encode())


class TakenOverError(SurroundingsError):
    """The sweep has another driver by now."""
