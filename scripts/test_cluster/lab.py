"""A laptop and a few machines on one computer: namespaces joined by a bridge, each machine with an sshd. Needs root.

Nothing leaves the computer: the bridge has no way out. Ending a machine is ending the first process of its pid namespace,
which takes everything in it along, as a power cut would.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_OFFLINE": "1"}
START_S = 20.0


@dataclass
class Machine:
    """One machine of the lab."""

    name: str
    address: str
    folder: Path
    outer: subprocess.Popen[bytes]
    """`unshare`, outside."""
    pid: int
    """The first process inside, seen from outside."""
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Returns what runs a command on this machine."""
        return ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--uts", "--", *arguments]

    def start(self, *arguments: str, folder: Path | None = None, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Starts a command on this machine, its output on pipes."""
        inside = ["env", "-C", str(folder or Path.home()), *arguments]
        process = subprocess.Popen(
            self.command(inside),
            env={"PATH": PATH, "HOME": str(Path.home()), "LANG": "C.UTF-8", **QUIET, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self.started.append(process)
        return process

    def run(
        self, *arguments: str, folder: Path | None = None, env: Mapping[str, str] | None = None, timeout_s: float = 120
    ) -> str:
        """Returns what a command prints on this machine.

        Raises:
            RuntimeError: if it fails; with what it printed.
        """
        process = self.start(*arguments, folder=folder, env=env)
        out, _ = process.communicate(timeout=timeout_s)
        if process.returncode:
            raise RuntimeError(f"on {self.name}: {' '.join(arguments)} ended with {process.returncode}:\n{out[-4000:]}")
        return out

    def power_off(self) -> None:
        """Ends everything on this machine at once."""
        self.outer.kill()  # --kill-child: the first process inside goes with it
        self.outer.wait()


class Lab:
    """A bridge, a laptop and machines `node1`, `node2`, ... with addresses 10.9.0.1, .2, ...; a context manager.

    `shared` is a folder that all machines but the laptop see, as they would a network file system.
    """

    def __init__(self, num_machines: int) -> None:
        self._num_machines = num_machines
        self.folder = Path(tempfile.mkdtemp(prefix="prolu-lab-", dir="/srv"))
        self.shared = self.folder / "shared"
        self.machines: list[Machine] = []

    def __enter__(self) -> "Lab":
        try:
            self._prepare()
            self.switch = self._namespace("switch", ["sleep", "infinity"], network_only=True)
            self._in_switch("link", "set", "lo", "up")
            self._in_switch("link", "add", "name", "br0", "type", "bridge")
            self._in_switch("addr", "add", "10.9.0.254/24", "dev", "br0")
            self._in_switch("link", "set", "br0", "up")
            self.machines = [self._machine(f"node{i}", f"10.9.0.{i}", "node") for i in range(1, self._num_machines + 1)]
            self.laptop = self._machine("laptop", "10.9.0.100", "laptop")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        laptop = [self.laptop] if hasattr(self, "laptop") else []
        for machine in [*self.machines, *laptop]:
            machine.power_off()
            for process in machine.started:
                process.wait(timeout=10)
        if hasattr(self, "switch"):
            self.switch.kill()
            self.switch.wait()
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            print(f"what the machines wrote is kept in {self.folder}", file=sys.stderr)

    def cut(self, machine: Machine, *, connected: bool = False) -> None:
        """Pulls a machine's cable, or plugs it in again."""
        self._in_switch("link", "set", f"s-{machine.name}", "up" if connected else "down")

    @property
    def key(self) -> Path:
        """The private key with which the laptop and the head log in."""
        return self.folder / "key"

    def _prepare(self) -> None:
        self.shared.mkdir()
        for name in ("key", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)], check=True)
        (self.folder / "sshd_config").write_text(
            "Port 22\nUsePAM no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nStrictModes no\n"
            f"AuthorizedKeysFile {self.folder}/key.pub\nPidFile none\nSubsystem sftp internal-sftp\nMaxStartups 100\n"
        )

    def _machine(self, name: str, address: str, role: str) -> Machine:
        folder = self.folder / name
        folder.mkdir()
        outer = self._namespace(name, [str(HERE / "host.sh"), str(folder), name, address, role])
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        pid = int(_wait(lambda: children.read_text().split()[:1], f"{name} did not start")[0])
        link = f"s-{name}"
        self._in_switch("link", "add", "name", link, "type", "veth", "peer", "name", name)
        self._in_switch("link", "set", link, "master", "br0", "up")
        self._in_switch("link", "set", name, "netns", str(pid))
        _wait((folder / "ready").exists, f"{name} did not come up")
        return Machine(name, address, folder, outer, pid)

    def _namespace(self, name: str, arguments: list[str], *, network_only: bool = False) -> subprocess.Popen[bytes]:
        more = [] if network_only else ["--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        env = {"PATH": PATH, "HOME": str(Path.home()), "PYTHON_HOME": sys.base_prefix, "VIRTUAL_ENV": sys.prefix}
        log = (self.folder / f"{name}.log").open("wb")
        process = subprocess.Popen(["unshare", "--net", *more, "--", *arguments], env=env, stdout=log, stderr=log)
        if network_only:
            ours = Path("/proc/self/ns/net").readlink()
            _wait(lambda: Path(f"/proc/{process.pid}/ns/net").readlink() != ours, "no network namespace")
        return process

    def _in_switch(self, *arguments: str) -> None:
        subprocess.run(["nsenter", "--target", str(self.switch.pid), "--net", "--", "ip", *arguments], check=True)


def _wait(condition, message: str):
    deadline = time.monotonic() + START_S
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise RuntimeError(message)
        time.sleep(0.05)
    return found
