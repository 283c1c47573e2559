"""Follows a job on a cluster through its log, over a tunnel that may break and come back any number of times."""

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from prolu_tune.errors import SurroundingsError
from prolu_tune.launch.events import MARK, EventPlayer
from prolu_tune.launch.find import Target
from prolu_tune.launch.jobs import connect, server_errors
from prolu_tune.launch.tunnel import Tunnel
from prolu_tune.screen.screen import Screen

if TYPE_CHECKING:
    from ray.job_submission import JobStatus, JobSubmissionClient

RETRY_S = (1.0, 2.0, 5.0, 10.0)
PATIENCE_S = 900.0
"""How long a cluster may stay out of reach before this machine gives up watching; the sweep does not notice."""
LAST_LINES = 15


class Follower:
    """Plays a job's events as they come, until it ends or Ctrl-C is pressed."""

    def __init__(self, target: Target, job: str, player: EventPlayer, screen: Screen) -> None:
        self._target, self._job, self._player, self._screen = target, job, player, screen
        self._played = 0
        self._other_lines: deque[str] = deque(maxlen=LAST_LINES)

    def run(self) -> int | None:
        """Returns the job's exit code; None if Ctrl-C was pressed here.

        Raises:
            SurroundingsError: if the job died without a word, or the cluster stays out of reach.
        """
        failures, last_contact = 0, time.monotonic()
        try:
            while True:
                played = self._played
                try:
                    ended = self._watch()
                    if ended is not None:
                        return ended
                except JobDiedError:
                    raise
                except (SurroundingsError, OSError) as error:
                    if self._played > played:
                        failures, last_contact = 0, time.monotonic()
                    if time.monotonic() - last_contact > PATIENCE_S:
                        raise SurroundingsError(f"{error}\n{left_words(self._target, self._name)}") from error
                    if failures == 0:
                        self._screen.note(f"lost sight of {self._job}, looking again ({str(error).splitlines()[0]})")
                    time.sleep(RETRY_S[min(failures, len(RETRY_S) - 1)])
                    failures += 1
        except KeyboardInterrupt:
            return None

    @property
    def _name(self) -> str:
        return self._job.partition("-")[2].rpartition(".")[0]

    def _watch(self) -> int | None:
        """Returns the exit code if the job has ended, None if its log broke off; plays what is new."""
        cluster, host = self._target.cluster, self._target.host
        if cluster is None or host is None:
            assert self._target.address is not None
            return self._tail(self._target.address)
        port = cluster.settings.dashboard_port
        with Tunnel(cluster, host, [port]) as tunnel:
            return self._tail(tunnel.url(port))

    def _tail(self, url: str) -> int | None:
        client = connect(self._target, url)
        reader = _Lines(self._player, skip=self._played, other=self._other_lines)
        try:
            asyncio.run(reader.read(client, self._job))
        except RuntimeError as error:
            raise SurroundingsError(str(error)) from error
        finally:
            self._played = max(self._played, reader.events)
        if self._player.exit_code is not None:
            return self._player.exit_code
        with server_errors(self._target):
            details = client.get_job_info(self._job)
        return self._silent_end(details.status, details.message)

    def _silent_end(self, status: "JobStatus", message: str | None) -> int | None:
        """Returns the exit code of a job that ended without saying how."""
        if not status.is_terminal():
            return None
        if status == "STOPPED":
            return 130
        lines = [line for line in self._other_lines if line.strip()] or (message or "").splitlines()[-LAST_LINES:]
        raise JobDiedError(
            f"the driver on {self._target.label} ended without a word ({status}); its last lines:\n" + "\n".join(lines)
        )


class JobDiedError(SurroundingsError):
    """The driver on the head was lost; what it had saved is safe."""


class _Lines:
    """Reads a job's log from its beginning, as Ray gives it, and plays the events that were not played before."""

    def __init__(self, player: EventPlayer, *, skip: int, other: deque[str]) -> None:
        self._player, self._skip, self._other = player, skip, other
        self.events = 0
        self._torn = ""

    async def read(self, client: "JobSubmissionClient", job: str) -> None:
        """Returns when the log has ended."""
        import aiohttp

        try:
            async for part in client.tail_job_logs(job):
                *whole, self._torn = (self._torn + part).split("\n")
                for line in whole:
                    self._take(line)
        except aiohttp.ClientError as error:
            raise SurroundingsError(f"the connection broke ({error})") from error

    def _take(self, line: str) -> None:
        if line.startswith(MARK):
            self.events += 1
            if self.events > self._skip:
                self._player.play(line)
        else:
            self._other.append(line)


def left_words(target: Target, name: str) -> str:
    """Returns what to tell a person whose sweep goes on without this machine."""
    return (
        f"the sweep goes on at {target.label}\n"
        f"  watch again: the same command\n"
        f"  save and stop it: prolu-tune stop {name}{target.flag}"
    )
