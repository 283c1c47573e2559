"""A real sshd on loopback, with keys of its own, for all tests of tunnels."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


@dataclass(frozen=True)
class Head:
    """A machine that can be logged into."""

    port: int
    key: Path
    stranger: Path
    """A key that it does not know."""

    def cluster(self, folder: Path, *, key: Path | None = None, **settings: object) -> Path:
        """Returns a cluster file whose head is this machine."""
        ours = {"storage": str(folder / "storage"), "ssh_port": self.port} | settings
        path = folder / "toy.yaml"
        path.write_text(
            "cluster_name: toy\n"
            "provider: {type: local, head_ip: 127.0.0.1, worker_ips: []}\n"
            f"auth: {{ssh_user: {getpass.getuser()}, ssh_private_key: {key or self.key}}}\n"
            f"metadata: {{prolu_tune: {{{', '.join(f'{name}: {value}' for name, value in ours.items())}}}}}\n"
        )
        return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    if not Path(SSHD).exists():
        pytest.skip("no sshd here (Debian: openssh-server)")
    folder, port = tmp_path_factory.mktemp("sshd"), free_port()
    for name in ("key", "host", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nUsePAM no\nPasswordAuthentication no\n"
        f"StrictModes no\nAuthorizedKeysFile {folder / 'key.pub'}\nPidFile none\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield Head(port, folder / "key", folder / "stranger")
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster of the person who runs the tests is looked at, and no known host of theirs is written."""
    for name in ("RAY_ADDRESS", "PROLU_CLUSTER", "PROLU_ADDRESS", "PROLU_STORAGE", "PROLU_TRACKING_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
