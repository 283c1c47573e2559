"""Rules for files of `ray up`: what Ray's schema lets pass and would cost money, data or safety."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prolu_tune.config.yaml import Document, KeyPath
from prolu_tune.errors import InputError
from prolu_tune.launch.cluster_file import TOKEN_SUFFIX, UNFILLED, parse_cluster
from prolu_tune.launch.machines import AWS_CPU_FAMILIES, AWS_GPUS, GCP_ACCELERATORS, GCP_CPU_FAMILIES, GCP_GPUS

Complaint = tuple[KeyPath, str]
PROVIDER_KEYS: dict[str, str] = {
    "aws": """type region availability_zone cache_stopped_nodes use_internal_ips use_external_head_ip security_group key_pair
        aws_credentials cloudwatch worker_liveness_check foreground_node_launch disable_node_updaters
        disable_launch_config_check""",
    "gcp": """type region availability_zone project_id cache_stopped_nodes use_internal_ips use_external_head_ip
        gcp_credentials worker_liveness_check foreground_node_launch disable_node_updaters disable_launch_config_check""",
    "local": "type head_ip worker_ips external_head_ip coordinator_address worker_liveness_check",
}
"""What the providers of ray 2.60 read; Ray's schema lets any key pass there, and a typo has no effect."""
OPEN = ("0.0.0.0/0", "::/0")
LOOPBACK = ("127.0.0.1", "localhost")
LIST_OF_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")


def complaints(document: Document, path: Path) -> Iterator[Complaint]:
    """Yields what is wrong with a file of `ray up`.

    Raises:
        InputError: if our own part of it is wrong.
    """
    data = document.data
    yield from _provider(data["provider"])
    yield from _open_ports(data)
    yield from _token(data)
    yield from _machines(data)
    yield from _commands(data)
    if data["provider"].get("type") != "local" and not 0 < data.get("idle_timeout_minutes", 0) <= 60:
        yield ("idle_timeout_minutes",), "should be between 1 and 60, so that idle machines are given back"
    try:
        parse_cluster(document, path)
    except InputError:
        # A blank where the storage goes is no folder and no URI; the file is not in use yet.
        if not _storage(data).startswith(UNFILLED):
            raise
    yield from _shared_storage(data)


def _provider(provider: dict[str, Any]) -> Iterator[Complaint]:
    kind = provider.get("type")
    known = PROVIDER_KEYS.get(str(kind), "").split()
    if not known:
        near = difflib.get_close_matches(str(kind), list(PROVIDER_KEYS), n=1)
        hint = f"did you mean {near[0]}?" if near else f"those that are checked: {', '.join(PROVIDER_KEYS)}"
        yield ("provider", "type"), f"{kind} is not a provider with rules here; {hint}"
        return
    for key in provider:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"
            yield ("provider", key), f"is not a key of provider {kind}, and Ray would ignore it; {hint}"
    for key in {"aws": ("region",), "gcp": ("region", "availability_zone", "project_id"), "local": ("head_ip",)}[str(kind)]:
        if not provider.get(key):
            yield ("provider", key), f"is missing; provider {kind} needs it"


def _open_ports(data: dict[str, Any]) -> Iterator[Complaint]:
    """Yields doors that are open to the world, or that Ray would open."""
    for path, value in _leaves(data):
        if isinstance(value, str) and value in OPEN:
            yield path, f"lets the whole world in ({value}); write the address that you come from, such as 203.0.113.7/32"
    kind = data["provider"].get("type")
    for name, node in (data.get("available_node_types") or {}).items():
        config, place = node.get("node_config") or {}, ("available_node_types", name, "node_config")
        if kind == "aws" and not config.get("SecurityGroupIds") and not config.get("NetworkInterfaces"):
            yield (
                place,
                (
                    "names no SecurityGroupIds, and Ray makes a group that lets ssh in from everywhere; make one with "
                    "cluster/prepare_aws.py and name it"
                ),
            )
        if kind == "gcp":
            nets = [net.get("subnetwork") or net.get("network") or "" for net in config.get("networkInterfaces") or [{}]]
            if any(not net or net.endswith("/default") for net in nets):
                yield (
                    place,
                    (
                        "uses the project's default network, which lets ssh in from everywhere; make a network of its own "
                        "(see the top of cluster/gpu-gcp.yaml) and name it in networkInterfaces"
                    ),
                )


def _token(data: dict[str, Any]) -> Iterator[Complaint]:
    mounts = data.get("file_mounts") or {}
    if not any(str(there).endswith(TOKEN_SUFFIX) for there in mounts):
        yield ("file_mounts",), "has no token, so Ray would not start: add ~/.ray/auth_token: ~/.ray/auth_token"
    if not any("chmod 600 ~/.ray/auth_token" in command for command in data.get("setup_commands") or []):
        yield ("setup_commands",), "leave the token readable for others on the machines; add: chmod 600 ~/.ray/auth_token"
    for key in LIST_OF_COMMANDS:
        for place, command in _starts(data, key):
            if "RAY_AUTH_MODE=token" not in command:
                yield place, "starts Ray without asking for the token; put `export RAY_AUTH_MODE=token;` in front"


def _commands(data: dict[str, Any]) -> Iterator[Complaint]:
    """Yields what is wrong with the commands that start Ray and MLflow."""
    for key in LIST_OF_COMMANDS:
        if not any("ray start" in command for command in data.get(key) or []):
            yield (key,), "is missing or starts no Ray; Ray's own default shows the dashboard to the world"
    for place, command in _starts(data, "head_start_ray_commands"):
        shown = _option(command, "dashboard-host")
        if shown not in LOOPBACK:
            yield place, f"shows the dashboard on {shown or 'an address of its own choice'}; write --dashboard-host=127.0.0.1"
        if _option(command, "num-cpus") != "0" and data["provider"].get("type") != "local":
            yield place, "lets trials run on the head; write --num-cpus=0 --num-gpus=0"
        if data["provider"].get("type") == "local" and "RAY_enable_autoscaler_v2=0" not in command:
            yield place, "no worker would ever join (ray 2.60, provider local); write export RAY_enable_autoscaler_v2=0"
        if "autoscaling-config" not in command:
            yield place, "starts no worker: write --autoscaling-config=~/ray_bootstrap_config.yaml"
    servers = [
        (("head_start_ray_commands", i), command)
        for i, command in enumerate(data.get("head_start_ray_commands") or [])
        if "mlflow server" in command
    ]
    if not servers:
        yield ("head_start_ray_commands",), "start no MLflow server; see cluster/gpu.yaml"
    for place, command in servers:
        if _option(command, "host") not in LOOPBACK:
            yield place, "MLflow has no password: write --host 127.0.0.1; prolu-tune reaches it through ssh"
        if _option(command, "allowed-hosts") == "*":
            yield (
                place,
                "any web page could talk to MLflow through your browser; write --allowed-hosts '127.0.0.1:*,localhost:*'",
            )
    settings = (data.get("metadata") or {}).get("prolu_tune") or {}
    for name, option, default in (("mlflow_port", "port", 5000), ("dashboard_port", "dashboard-port", 8265)):
        pool = servers if name == "mlflow_port" else list(_starts(data, "head_start_ray_commands"))
        for place, command in pool:
            used = _option(command, option)
            if used is not None and used != str(settings.get(name, default)):
                yield place, f"uses port {used}, but metadata.prolu_tune.{name} is {settings.get(name, default)}"


def _machines(data: dict[str, Any]) -> Iterator[Complaint]:
    """Yields machines that do not exist, or do not have what the file says."""
    kind = data["provider"].get("type")
    for name, node in (data.get("available_node_types") or {}).items():
        config, resources = node.get("node_config") or {}, node.get("resources") or {}
        place: KeyPath = ("available_node_types", name, "node_config")
        if kind == "aws":
            machine, key, table, families = config.get("InstanceType", ""), "InstanceType", AWS_GPUS, AWS_CPU_FAMILIES
            family = machine.partition(".")[0]
        elif kind == "gcp":
            machine, key, table, families = config.get("machineType", ""), "machineType", GCP_GPUS, GCP_CPU_FAMILIES
            family = machine.partition("-")[0]
        else:
            continue
        gpus = table[machine][0] if machine in table else 0
        if machine not in table and family not in families:
            near = difflib.get_close_matches(machine, list(table), n=3, cutoff=0.5)
            yield (
                (*place, key),
                f"{machine or 'nothing'} is not a machine known here; did you mean {', '.join(near) or 'another'}?",
            )
            continue
        for accelerator in config.get("guestAccelerators") or []:
            model = str(accelerator.get("acceleratorType", "")).rpartition("/")[2]
            if model not in GCP_ACCELERATORS:
                yield (*place, "guestAccelerators"), f"{model} is not a GPU for n1; choose one of {', '.join(GCP_ACCELERATORS)}"
            gpus += int(accelerator.get("acceleratorCount", 0))
        if "GPU" in resources and resources["GPU"] != gpus:
            yield (
                ("available_node_types", name, "resources"),
                f"GPU is {resources['GPU']}, but {machine} has {gpus}; trials would wait for ever or share too few",
            )
        if name != data.get("head_node_type") and not resources:
            yield (
                ("available_node_types", name, "resources"),
                "is empty; say what the machine has, so that a trial can be placed",
            )
        if name == data.get("head_node_type") and (resources.get("CPU") or resources.get("GPU")):
            yield ("available_node_types", name, "resources"), "lets trials run on the head; write {CPU: 0, GPU: 0}"


def _shared_storage(data: dict[str, Any]) -> Iterator[Complaint]:
    """Yields a storage that is one machine's own."""
    place, storage = ("metadata", "prolu_tune", "storage"), _storage(data)
    commands = " ".join(
        str(command) for key in ("initialization_commands", "setup_commands") for command in data.get(key) or []
    )
    cloud = data["provider"].get("type") != "local"
    if storage.startswith("/") and cloud and not re.search(rf"mount .*{re.escape(storage.split('/')[1])}", commands):
        yield (
            place,
            (
                f"{storage} is a folder on each machine's own disk; give a bucket (s3://, gs://), or mount a shared folder "
                "there in setup_commands"
            ),
        )
    for i, command in enumerate(data.get("head_start_ray_commands") or []):
        target = _option(command, "artifacts-destination") if "mlflow server" in command else None
        if target is not None and storage and not target.startswith(storage.rstrip("/")):
            yield (
                ("head_start_ray_commands", i),
                f"MLflow's artifacts go to {target}; put them under the storage: {storage}/artifacts",
            )


def _storage(data: dict[str, Any]) -> str:
    return str(((data.get("metadata") or {}).get("prolu_tune") or {}).get("storage", ""))


def _starts(data: dict[str, Any], key: str) -> Iterator[tuple[KeyPath, str]]:
    """Yields the commands of a list that start Ray, with their place."""
    for i, command in enumerate(data.get(key) or []):
        if "ray start" in command:
            yield (key, i), command


def _option(command: str, name: str) -> str | None:
    """Returns the value of `--name` in a shell command."""
    found = re.search(rf"--{name}[= ]\s*('[^']*'|\"[^\"]*\"|\S+)", command)
    return found[1].strip("'\"") if found else None


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yields every plain value of a tree with its path."""
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(child, (*path, key))
    else:
        yield path, value
