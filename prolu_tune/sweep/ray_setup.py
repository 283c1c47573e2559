"""Starts or joins Ray, quietly and on loopback, and says what it has; the one place with Ray's switches."""

import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.search.space import Resources

QUIET_ENVIRONMENT: dict[str, str] = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "60",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
}
"""No boxes, no usage statistics, no signal handlers of Tune's; an actor without a GPU share still sees the GPUs."""
OBJECT_STORE_BYTES = 256 * 2**20
"""Activations travel in memory-mapped files, so Ray's object store stays small."""


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    node_id: str
    cpus: float
    gpus: float


def start_ray(address: str | None, *, token_folder: Path, trial_gpus: float) -> list[Node]:
    """Joins the cluster at `address`, or starts Ray on this machine; returns its nodes.

    Raises:
        SurroundingsError: if the cluster does not answer.
    """
    os.environ.update(QUIET_ENVIRONMENT)
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Tune logs a lost worker as an error; our callback says it in a line of its own.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if address is None:
        _use_token(token_folder)
    import ray

    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init(
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
                num_gpus=None if trial_gpus else 0,
                **common,
            )
        else:
            ray.init(address=address, **common)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address} does not answer" if address else "Ray does not start on this machine"
        reason = str(error).strip().splitlines()[0]
        raise SurroundingsError(f"{where} ({reason}); mend that, then run the same command again") from error
    return nodes()


def _use_token(folder: Path) -> None:
    """Makes the local cluster refuse strangers; our own token file, because Ray would write one that all can read."""
    path = folder / "ray_token"
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as out:
            out.write(secrets.token_hex(32))
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)})


def nodes() -> list[Node]:
    """Returns the cluster's living nodes."""
    import ray

    return [
        Node(node["NodeID"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]


def check_resources(resources: Resources, found: list[Node]) -> int:
    """Returns how many trials can run at once.

    Raises:
        InputError: if no node can hold even one, which Ray would wait for without end.
    """
    cpus, gpus = resources.cpus_per_trial, resources.gpus_per_trial
    fits = [min(node.cpus // cpus, node.gpus // gpus if gpus else float("inf")) for node in found]
    if sum(fits) < 1:
        best = max(found, key=lambda node: (node.gpus, node.cpus))
        if gpus > best.gpus:
            raise InputError(
                f"resources.gpus_per_trial is {gpus:g}, but the best machine here has {best.gpus:g} GPUs; "
                "lower it (0 trains on CPUs), or name a cluster with --address"
            )
        raise InputError(f"resources.cpus_per_trial is {cpus:g}, but the largest machine has {best.cpus:g} CPUs; lower it")
    return min(int(sum(fits)), resources.max_concurrent_trials or 10**6)
