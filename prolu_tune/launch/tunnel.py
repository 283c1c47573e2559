"""An ssh tunnel to the head of a cluster: ports of its 127.0.0.1 on ours, for as long as this process lives."""

import os
import select
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.launch.cluster_file import ClusterFile

KNOWN_HOSTS = Path("~/.ssh/prolu_tune_known_hosts")
"""Host keys of heads, kept apart: a head's key is noted at the first visit, and another one is refused from then on."""
CONNECT_S = 10
OPEN_S = 30.0
"""How long logging in may take in all."""
READY = "prolu-tune is through"
LOOPBACK = "127.0.0.1"


class Tunnel:
    """Ports of a machine's 127.0.0.1, reached under ports of our own; ends with `close`, or with this process.

    The remote end runs `cat` on our standard input, so that even a killed process leaves no tunnel behind.
    """

    def __init__(self, cluster: ClusterFile, host: str, ports: Sequence[int]) -> None:
        """Opens the tunnel.

        Raises:
            InputError: if the login is refused: a wrong user, key or host key.
            SurroundingsError: if the machine does not answer.
        """
        self._cluster, self._host = cluster, host
        self._local = dict(zip(ports, _free_ports(len(ports)), strict=True))
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        self._process = subprocess.Popen(  # noqa: S603 - ssh, with arguments of ours and of the owner's own cluster file
            ssh_command(cluster, host, self._local),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            # Ctrl-C is for us: the tunnel is still needed to say good-bye.
            start_new_session=True,
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def local(self, port: int) -> int:
        """Returns our port for a port of the machine."""
        return self._local[port]

    def url(self, port: int) -> str:
        """Returns the address of a server behind a port of the machine."""
        return f"http://{LOOPBACK}:{self._local[port]}"

    @property
    def alive(self) -> bool:
        """Whether it still stands."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends the tunnel; calling it again is harmless."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        self._process.terminate()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> "Tunnel":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _wait(self) -> None:
        """Waits until the remote end says that the login is done."""
        assert self._process.stdout is not None
        deadline, said = time.monotonic() + OPEN_S, b""
        while READY.encode() not in said:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise self._refused(f"no login within {OPEN_S:.0f} s")
            part = os.read(self._process.stdout.fileno(), 4096)
            if not part:
                self._process.wait()
                raise self._refused("")
            said += part

    def _refused(self, reason: str) -> InputError | SurroundingsError:
        """Returns what to tell a person about a login that failed."""
        self._errors.seek(0)
        told = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return login_error(self._cluster, self._host, told or [reason])


def ssh_command(cluster: ClusterFile, host: str, ports: dict[int, int]) -> list[str]:
    """Returns the command of a tunnel that ends when its standard input does."""
    known_hosts = KNOWN_HOSTS.expanduser()
    known_hosts.parent.mkdir(mode=0o700, exist_ok=True)
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": str(CONNECT_S),
        "ExitOnForwardFailure": "yes",
        "ServerAliveInterval": "10",
        "ServerAliveCountMax": "3",
        "StrictHostKeyChecking": "accept-new",
        "UserKnownHostsFile": str(known_hosts),
    }
    if cluster.ssh_proxy:
        options["ProxyCommand"] = cluster.ssh_proxy
    command = ["ssh", "-T", "-p", str(cluster.settings.ssh_port)]
    for name, value in options.items():
        command += ["-o", f"{name}={value}"]
    for there, here in ports.items():
        command += ["-L", f"{LOOPBACK}:{here}:{LOOPBACK}:{there}"]
    if cluster.ssh_key is not None:
        command += ["-o", "IdentitiesOnly=yes", "-i", str(cluster.ssh_key)]
    if cluster.ssh_user:
        command += ["-l", cluster.ssh_user]
    return [*command, host, f"echo {shlex.quote(READY)}; exec cat"]


def login_error(cluster: ClusterFile, host: str, told: list[str]) -> InputError | SurroundingsError:
    """Returns the error for what ssh printed before it gave up."""
    text = " ".join(told)
    where = f"{cluster.ssh_user + '@' if cluster.ssh_user else ''}{host} port {cluster.settings.ssh_port}"
    if "HOST IDENTIFICATION HAS CHANGED" in text or "Host key verification failed" in text:
        name = host if cluster.settings.ssh_port == 22 else f"[{host}]:{cluster.settings.ssh_port}"
        return InputError(
            f"the head of {cluster.path} ({where}) has another host key than before; after `ray down` and `ray up` that is "
            f"a new machine, and this forgets the old one: ssh-keygen -R '{name}' -f {KNOWN_HOSTS.expanduser()}"
        )
    if "Permission denied" in text or "Too many authentication failures" in text:
        key = f"the key {cluster.ssh_key}" if cluster.ssh_key else "the keys of this machine"
        return InputError(
            f"the head of {cluster.path} ({where}) does not accept {key}; check auth.ssh_user and auth.ssh_private_key there"
        )
    if "Identity file" in text and "not accessible" in text:
        return InputError(f"{cluster.path}: there is no key {cluster.ssh_key}; check auth.ssh_private_key")
    return SurroundingsError(
        f"the head of {cluster.path} ({where}) does not answer: {told[-1]}; if the cluster is down, bring it up: "
        f"ray up {cluster.path}; if it is up, its firewall may not know this machine's address"
    )


def _free_ports(count: int) -> list[int]:
    """Returns ports of our 127.0.0.1 that nothing listens on."""
    held = [socket.socket() for _ in range(count)]
    try:
        for probe in held:
            probe.bind((LOOPBACK, 0))
        return [probe.getsockname()[1] for probe in held]
    finally:
        for probe in held:
            probe.close()
