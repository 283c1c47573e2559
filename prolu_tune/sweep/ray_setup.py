"""Starts or joins Ray, quietly and on loopback, and says what it has; the one place with Ray's switches."""

import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.search.space import Resources
from prolu_tune.sweep.settings import NodeType

QUIET_ENVIRONMENT: dict[str, str] = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_agent_register_timeout_ms": "180000",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "60",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
}
"""No boxes, no usage statistics, no signal handlers of Tune's; an actor without a GPU share still sees the GPUs; and on a
busy machine Ray's agents may need longer than the 30 s after which a node gives up."""
OBJECT_STORE_BYTES = 256 * 2**20
"""Activations travel in memory-mapped files, so Ray's object store stays small."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    node_id: str
    name: str
    """Host name, for people."""
    cpus: float
    gpus: float


def start_ray(
    address: str | None, *, token_folder: Path, trial_gpus: float, temporary_folder: Path | None = None
) -> list[Node]:
    """Joins the cluster at `address`, or starts Ray on this machine; returns its nodes.

    Args:
        temporary_folder: Where a Ray started here keeps sockets and logs; None: Ray's own choice.

    Raises:
        SurroundingsError: if the cluster does not answer.
    """
    os.environ.update(QUIET_ENVIRONMENT)
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Tune logs a lost worker as an error; our callback says it in a line of its own.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if address is None:
        _use_token(token_folder)
        # The only switch with which Ray lets its processes listen on 127.0.0.1 alone; read when it is imported.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray

    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init(
                address="local",  # else Ray joins whatever it finds here
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                num_gpus=None if trial_gpus else 0,
                _temp_dir=None if temporary_folder is None else str(temporary_folder),
                **common,
            )
        else:
            ray.init(address=address, **common)
    except Exception as error:  # Ray raises just that when one of its processes is too slow to start
        where = f"the Ray cluster at {address} does not answer" if address else "Ray does not start on this machine"
        reason = str(error).strip().splitlines()[0]
        raise SurroundingsError(f"{where} ({reason}); mend that, then run the same command again") from error
    return nodes()


def _use_token(folder: Path) -> None:
    """Makes the local cluster refuse strangers; our own token file, because Ray would write one that all can read."""
    path = folder / "ray_token"
    if not path.exists():
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(secrets.token_hex(32))
        temporary.replace(path)
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)})


def nodes() -> list[Node]:
    """Returns the cluster's living nodes."""
    import ray

    return [
        Node(
            node["NodeID"],
            node["NodeManagerHostname"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def trials_on(machine: Node | NodeType, resources: Resources) -> int:
    """Returns how many trials a machine can hold at once."""
    # A little more than nothing: ten tenths of a GPU are ten trials, and 1 // 0.1 is 9.
    fits = machine.cpus / resources.cpus_per_trial
    if resources.gpus_per_trial:
        fits = min(fits, machine.gpus / resources.gpus_per_trial)
    return int(fits + 1e-9)


def most_trials(resources: Resources, found: Sequence[Node], node_types: Sequence[NodeType] = ()) -> int:
    """Returns how many trials may be under way: those that present machines hold, or those that a grown cluster would."""
    now = sum(trials_on(node, resources) for node in found)
    grown = sum(trials_on(kind, resources) * kind.most for kind in node_types)
    return min(max(now, grown), resources.max_concurrent_trials or 10**6)


def keep_secrets() -> None:
    """Stops Tune from handing the driver's AWS keys to trials as arguments of their processes, which everybody can read.

    Ray also writes those to its log. Trials have the environment of their machine, which on this one is the driver's.
    """
    from ray.tune.execution import class_cache

    class_cache.ENV_VARS_TO_PROPAGATE.difference_update({key for key in class_cache.ENV_VARS_TO_PROPAGATE if "AWS" in key})


def check_resources(resources: Resources, found: Sequence[Node], node_types: Sequence[NodeType] = ()) -> int:
    """Returns how many trials can run at once.

    Raises:
        InputError: if no machine, present or to come, can hold even one, which Ray would wait for without end.
    """
    at_once = most_trials(resources, found, node_types)
    if at_once:
        return at_once
    cpus, gpus = resources.cpus_per_trial, resources.gpus_per_trial
    best = max([*found, *node_types], key=lambda machine: (machine.gpus, machine.cpus))
    if gpus > best.gpus:
        raise InputError(
            f"resources.gpus_per_trial is {gpus:g}, but the best machine here has {best.gpus:g} GPUs; bring up a cluster: "
            "`ray up cluster/gpu.yaml`, then the same command again (or name one with --cluster FILE); or train on CPUs: "
            "--set resources.gpus_per_trial=0"
        )
    raise InputError(f"resources.cpus_per_trial is {cpus:g}, but the largest machine has {best.cpus:g} CPUs; lower it")
