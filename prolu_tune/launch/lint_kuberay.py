"""Rules for a RayJob of KubeRay: the keys that are used here, safety, versions, GPUs, the shared volume."""

import difflib
import re
from collections.abc import Iterator
from typing import Any

from prolu_tune.config.yaml import KeyPath

Complaint = tuple[KeyPath, str]
KEYS: dict[KeyPath, str] = {
    (): "apiVersion kind metadata spec",
    ("spec",): """entrypoint shutdownAfterJobFinishes ttlSecondsAfterFinished backoffLimit rayClusterSpec runtimeEnvYAML
        submissionMode activeDeadlineSeconds suspend submitterPodTemplate submitterConfig deletionStrategy entrypointNumCpus
        metadata clusterSelector jobId managedBy""",
    ("spec", "rayClusterSpec"): """rayVersion authOptions enableInTreeAutoscaling autoscalerOptions headGroupSpec
        workerGroupSpecs gcsFaultToleranceOptions headServiceAnnotations suspend managedBy upgradeStrategy""",
    ("spec", "rayClusterSpec", "headGroupSpec"): """serviceType headService enableIngress rayStartParams template resources
        labels""",
}
"""The fields of KubeRay 1.6's reference, as far as this project's file may use them."""
CLUSTER: KeyPath = ("spec", "rayClusterSpec")
HEAD: KeyPath = (*CLUSTER, "headGroupSpec")


def complaints(data: dict[str, Any], lock: dict[str, str]) -> Iterator[Complaint]:
    """Yields what is wrong with a RayJob."""
    if (data.get("apiVersion"), data.get("kind")) != ("ray.io/v1", "RayJob"):
        yield (
            ("kind",),
            f"{data.get('apiVersion')} {data.get('kind')} is not checked here; write apiVersion: ray.io/v1, kind: RayJob",
        )
        return
    for path, known in KEYS.items():
        for key in _at(data, path):
            if key not in known.split():
                near = difflib.get_close_matches(key, known.split(), n=1)
                yield (*path, key), f"is not a key here; did you mean {near[0] if near else ', '.join(known.split())}?"
    cluster = _at(data, CLUSTER)
    if cluster.get("rayVersion") != lock.get("ray"):
        yield (*CLUSTER, "rayVersion"), f"is {cluster.get('rayVersion')}, but requirements.lock has ray {lock.get('ray')}"
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        yield (*CLUSTER, "authOptions"), "asks for no token; write authOptions: {mode: token}"
    yield from _head(data)
    yield from _workers(cluster)
    yield from _volume(data)
    yield from _servers(data)


def _head(data: dict[str, Any]) -> Iterator[Complaint]:
    head = _at(data, HEAD)
    if head.get("serviceType", "ClusterIP") != "ClusterIP" or head.get("enableIngress"):
        yield HEAD, "shows dashboard and GCS outside the cluster; write serviceType: ClusterIP and use kubectl port-forward"
    if str((head.get("rayStartParams") or {}).get("num-cpus")) != "0":
        yield (*HEAD, "rayStartParams"), 'lets trials run on the head; write num-cpus: "0"'


def _workers(cluster: dict[str, Any]) -> Iterator[Complaint]:
    groups = cluster.get("workerGroupSpecs") or []
    if not groups:
        yield (*CLUSTER, "workerGroupSpecs"), "is empty; nothing could hold a trial"
    for i, group in enumerate(groups):
        place = (*CLUSTER, "workerGroupSpecs", i)
        if not 0 <= group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 0):
            yield place, "minReplicas, replicas and maxReplicas must ascend"
        for container in _containers(group):
            limits = (container.get("resources") or {}).get("limits") or {}
            strange = [key for key in limits if "gpu" in key.lower() and key != "nvidia.com/gpu"]
            if strange:
                yield place, f"{strange[0]} is not a resource of Kubernetes; write nvidia.com/gpu"


def _volume(data: dict[str, Any]) -> Iterator[Complaint]:
    """Yields pods that do not see the storage of the sweep."""
    found = re.search(r"--storage[= ]\s*(\S+)", str(_at(data, ("spec",)).get("entrypoint", "")))
    if not found:
        yield ("spec", "entrypoint"), "names no --storage; give a folder on the shared volume, or a URI"
        return
    storage = found[1]
    if "://" in storage:
        return
    groups = [(HEAD, _at(data, HEAD))]
    groups += [
        ((*CLUSTER, "workerGroupSpecs", i), group) for i, group in enumerate(_at(data, CLUSTER).get("workerGroupSpecs") or [])
    ]
    claims: set[str] = set()
    for place, group in groups:
        volumes = (((group.get("template") or {}).get("spec") or {}).get("volumes")) or []
        claim_of = {v.get("name"): (v.get("persistentVolumeClaim") or {}).get("claimName") for v in volumes}
        for container in _containers(group):
            mounts = [m for m in container.get("volumeMounts") or [] if f"{storage}/".startswith(f"{m.get('mountPath')}/")]
            claim = claim_of.get(mounts[0].get("name")) if mounts else None
            if not claim:
                yield place, f"{container.get('name')} does not see {storage}; mount the shared claim there"
            else:
                claims.add(claim)
    if len(claims) > 1:
        yield ("spec",), f"head and workers mount different claims ({', '.join(sorted(claims))}); the storage must be one"


def _servers(data: dict[str, Any]) -> Iterator[Complaint]:
    """Yields an MLflow server that others than the pod reach."""
    for i, container in enumerate(_containers(_at(data, HEAD))):
        text = " ".join(map(str, [*(container.get("command") or []), *(container.get("args") or [])]))
        host = re.search(r"--host[= ](\S+)", text)
        if "mlflow server" in text and (host is None or host[1] not in ("127.0.0.1", "localhost")):
            yield (*HEAD, "template", "spec", "containers", i), "MLflow has no password: write --host 127.0.0.1"


def _containers(group: dict[str, Any]) -> list[dict[str, Any]]:
    return ((group.get("template") or {}).get("spec") or {}).get("containers") or []


def _at(data: Any, path: KeyPath) -> dict[str, Any]:
    for key in path:
        data = (data or {}).get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}
