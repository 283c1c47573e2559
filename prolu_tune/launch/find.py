"""Where a sweep runs: a cluster that was named, one that `ray up` brought up from here, or this machine.

The order: --address, RAY_ADDRESS, --cluster (PROLU_CLUSTER), a file of cluster/ whose cluster is up and answers, this machine.
Looking costs a glance at two folders where nothing was ever brought up.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.launch.cluster_file import ClusterFile, read_cluster_file
from prolu_tune.launch.tunnel import Tunnel

FOLDER = Path("cluster")
"""Where `ray up` files are looked for, below the working directory."""
ASK_CLOUD_S = 60.0
"""How long the cloud may take to name the head of a cluster."""
LOCAL = "local"
HEAD_OF = """
import sys
from ray.autoscaler.sdk import get_head_node_ip
print("head:", get_head_node_ip(sys.argv[1]))
"""


@dataclass(frozen=True)
class Target:
    """Where a sweep runs."""

    kind: Literal["local", "ray", "job"]
    """On this machine; by a driver here that joins a running Ray; as a job handed to a cluster's head."""
    address: str | None = None
    """Of Ray (HOST:PORT, auto), or of the dashboard that takes the job (http://...)."""
    cluster: ClusterFile | None = None
    """The cluster that takes the job, reached through a tunnel."""
    host: str | None = None
    """Its head."""

    @property
    def label(self) -> str:
        """What a person calls it."""
        if self.cluster is not None:
            return f"{self.cluster.path} (head {self.host})"
        return self.address or "this machine"

    @property
    def flag(self) -> str:
        """What a command has to carry to mean this target; begins with a blank."""
        return f" --cluster {self.cluster.path}" if self.cluster is not None else f" --address {self.address}"


def find_target(address: str | None, cluster: Path | None, *, note: Callable[[str], None]) -> Target:
    """Returns where to run.

    Args:
        address: As given by --address; `local` is this machine whatever is up.
        cluster: The file given by --cluster or PROLU_CLUSTER.
        note: Told about clusters that were brought up from here but do not answer.

    Raises:
        InputError: an address or file that cannot be, or two clusters that are up at once.
        SurroundingsError: the cloud does not say where the named cluster's head is.
    """
    if address is not None:
        return parse_address(address, "--address")
    if named := os.environ.get("RAY_ADDRESS"):
        if cluster is not None:
            note(f"RAY_ADDRESS is set and goes before --cluster {cluster}; unset it to use the file")
        return parse_address(named, "RAY_ADDRESS")
    if cluster is not None:
        return named_cluster(cluster)
    found = [target for path in raised_files() if (target := _answering(path, note)) is not None]
    if len(found) > 1:
        paths = ", ".join(str(target.cluster.path) for target in found if target.cluster)
        raise InputError(
            f"several clusters are up ({paths}); say which one with --cluster FILE, or --address local for neither"
        )
    return found[0] if found else Target("local")


def parse_address(address: str, source: str) -> Target:
    """Returns the target that an address names.

    Raises:
        InputError: if it is none, or one of Ray Client.
    """
    if address == LOCAL:
        return Target("local")
    if address.startswith(("http://", "https://")):
        return Target("job", address=address.rstrip("/"))
    if address.startswith("ray://"):
        raise InputError(
            f"{source} {address}: Ray Client is not used here; give the dashboard of the cluster (http://HOST:8265), which "
            "takes the sweep as a job, or on a machine of the cluster `auto`"
        )
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and port.isdigit()):
        raise InputError(f"{source} {address}: not an address; write auto, HOST:PORT, http://HOST:8265 or local")
    return Target("ray", address=address)


def named_cluster(path: Path) -> Target:
    """Returns the target of a cluster file.

    Raises:
        InputError: if the file is wrong, or no head of its cluster is up.
        SurroundingsError: if the cloud does not answer.
    """
    cluster = read_cluster_file(path)
    host = head_address(cluster)
    return Target("job", cluster=with_cached_key(cluster), host=host)


def head_address(cluster: ClusterFile) -> str:
    """Returns the address of a cluster's head, as this machine reaches it.

    Raises:
        InputError: if no head of the cluster is up.
        SurroundingsError: if the cloud does not answer.
    """
    if cluster.kind == LOCAL:
        host = cluster.provider.get("external_head_ip") or cluster.provider.get("head_ip")
        if not isinstance(host, str):
            raise InputError(f"{cluster.path}: provider.head_ip is missing; write the address of the machine that leads")
        return host
    command = [sys.executable, "-c", HEAD_OF, str(cluster.path)]
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter
            command, capture_output=True, text=True, timeout=ASK_CLOUD_S, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SurroundingsError(
            f"{cluster.path}: {cluster.kind} did not say within {ASK_CLOUD_S:.0f} s where the cluster's head is; "
            "check the network and give the same command again"
        ) from error
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("head: "):
            return line.removeprefix("head: ").strip()
    reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    if "not found" in reason:
        raise InputError(f"no cluster of {cluster.path} is up; bring it up: ray up {cluster.path}")
    raise SurroundingsError(f"{cluster.path}: {cluster.kind} does not say where the cluster's head is ({reason})")


def raised_files() -> list[Path]:
    """Returns the cluster files of `cluster/` of which `ray up` has left a trace on this machine, without asking anyone."""
    files = sorted(FOLDER.glob("*.yaml")) if FOLDER.is_dir() else []
    if not files or not (_states() or _caches()):
        return []
    from prolu_tune.config.yaml import load_document

    raised = []
    for path in files:
        try:
            data = load_document(path).data
        except InputError:
            continue  # not a file that could have been brought up; --cluster tells what is wrong with it
        provider, name = data.get("provider"), data.get("cluster_name")
        if isinstance(provider, dict) and isinstance(name, str) and is_raised(name, provider):
            raised.append(path)
    return raised


def is_raised(name: str, provider: dict[str, Any]) -> bool:
    """Whether `ray up` of such a cluster has left a trace on this machine."""
    if provider.get("type") != LOCAL:
        return _cached_config(name, provider.get("type")) is not None
    state = _read_json(_ray_folder() / f"cluster-{name}.state")
    head = state.get(str(provider.get("head_ip"))) if isinstance(state, dict) else None
    return isinstance(head, dict) and head.get("state") == "running"


def with_cached_key(cluster: ClusterFile) -> ClusterFile:
    """Returns the cluster with the ssh key that `ray up` made for it, where the file names none."""
    cached = _cached_config(cluster.name, cluster.kind) if cluster.ssh_key is None else None
    key = (cached or {}).get("auth", {}).get("ssh_private_key")
    return replace(cluster, ssh_key=Path(key).expanduser()) if isinstance(key, str) else cluster


def _answering(path: Path, note: Callable[[str], None]) -> Target | None:
    """Returns the target of a file that was brought up, None if it does not answer any more; says so."""
    try:
        target = named_cluster(path)
        assert target.cluster is not None and target.host is not None
        Tunnel(target.cluster, target.host, []).close()
    except (InputError, SurroundingsError) as error:
        note(f"{path} was brought up from here, but is not used: {error}")
        return None
    return target


def _ray_folder() -> Path:
    """Returns where Ray's launcher keeps the state of clusters of one's own machines."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"  # noqa: S108 - Ray's own rule


def _states() -> list[Path]:
    return list(_ray_folder().glob("cluster-*.state"))


def _caches() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("ray-config-*"))


def _cached_config(name: str, kind: Any) -> dict[str, Any] | None:
    """Returns the newest configuration that `ray up` has cached for a cluster of this name and provider."""
    for path in sorted(_caches(), key=lambda path: path.stat().st_mtime, reverse=True):
        cached = _read_json(path)
        config = cached.get("config") if isinstance(cached, dict) else None
        if isinstance(config, dict) and config.get("cluster_name") == name and config.get("provider", {}).get("type") == kind:
            return config
    return None


def _read_json(path: Path) -> Any:
    """Returns what a file holds, None for a file that is missing, a stranger's, or not JSON."""
    try:
        if path.stat().st_uid != os.getuid():  # both folders are everybody's
            return None
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
