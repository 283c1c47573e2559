"""Rules for a RayJob of KubeRay: the shape and keys that are used here, safety, versions, resources, the shared volume."""

import difflib
import re
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

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
GROUP_KEYS = """groupName replicas minReplicas maxReplicas rayStartParams template numOfHosts suspend idleTimeoutSeconds
    scaleStrategy resources labels"""
CONTAINER_KEYS = """name image imagePullPolicy command args env envFrom resources volumeMounts ports workingDir lifecycle
    livenessProbe readinessProbe startupProbe securityContext"""
"""Of a group of workers, and of a container of any pod."""
CLUSTER: KeyPath = ("spec", "rayClusterSpec")
HEAD: KeyPath = (*CLUSTER, "headGroupSpec")


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_LIST: dict[str, Any] = {"type": "array", "items": {"type": "object"}}
_AMOUNTS: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number"], "pattern": r"^\d+(\.\d+)?(m|[kMGTPE]i?|Ki)?$"},
}
_CONTAINER = _object(
    *("name", "image"),
    name=_TEXT,
    image=_TEXT,
    resources=_object(limits=_AMOUNTS, requests=_AMOUNTS),
    volumeMounts={"type": "array", "items": _object("name", "mountPath", name=_TEXT, mountPath=_TEXT)},
    command={"type": "array"},
    args={"type": "array"},
)
_CONTAINERS = {"type": "array", "minItems": 1, "items": _CONTAINER}
_VOLUMES = {"type": "array", "items": _object("name", persistentVolumeClaim={"type": "object"})}
_TEMPLATE = _object("spec", spec=_object("containers", containers=_CONTAINERS, volumes=_VOLUMES))
_PARAMS = {"type": "object", "additionalProperties": {"type": "string"}}
_HEAD_GROUP = _object("template", rayStartParams=_PARAMS, template=_TEMPLATE)
_WORKER_GROUP = _object(
    *("groupName", "template"),
    **dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), _COUNT),
    groupName=_TEXT,
    rayStartParams=_PARAMS,
    template=_TEMPLATE,
)
_CLUSTER = _object(
    "headGroupSpec",
    headGroupSpec=_HEAD_GROUP,
    workerGroupSpecs={"type": "array", "items": _WORKER_GROUP},
    authOptions={"type": "object"},
)
SHAPE = _object("spec", spec=_object("entrypoint", "rayClusterSpec", entrypoint=_TEXT, rayClusterSpec=_CLUSTER))
"""What Kubernetes or the operator would refuse, as a JSON schema."""
_UNITS = {"m": 1e-3, "": 1.0} | {f"{prefix}i": 1024.0**i for i, prefix in enumerate("KMGTPE", 1)}
_UNITS |= {prefix: 1000.0**i for i, prefix in enumerate("kMGTPE", 1)}


def complaints(data: dict[str, Any], lock: dict[str, str]) -> Iterator[Complaint]:
    """Yields what is wrong with a RayJob."""
    if (data.get("apiVersion"), data.get("kind")) != ("ray.io/v1", "RayJob"):
        yield (
            ("kind",),
            f"{data.get('apiVersion')} {data.get('kind')} is not checked here; write apiVersion: ray.io/v1, kind: RayJob",
        )
        return
    strange = list(_strange_keys(data))
    found = [*strange, *_shape(data, misspelt={place[:-1] for place, _ in strange})]
    if found:  # the other rules take the shape for granted
        yield from found
        return
    cluster = _at(data, CLUSTER)
    if cluster.get("rayVersion") != lock.get("ray"):
        yield (*CLUSTER, "rayVersion"), f"is {cluster.get('rayVersion')}, but requirements.lock has ray {lock.get('ray')}"
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        yield (*CLUSTER, "authOptions"), "asks for no token; write authOptions: {mode: token}"
    yield from _head(data)
    yield from _workers(cluster)
    yield from _volume(data)
    yield from _servers(data)


def _strange_keys(data: dict[str, Any]) -> Iterator[Complaint]:
    keys = dict(KEYS)
    for place, group in _groups(data):
        if place != HEAD:
            keys[place] = GROUP_KEYS
        containers = _at(group, ("template", "spec")).get("containers")
        for i in range(len(containers) if isinstance(containers, list) else 0):
            keys[*place, "template", "spec", "containers", i] = CONTAINER_KEYS
    for path, known in keys.items():
        for key in _at(data, path):
            if key not in known.split():
                near = difflib.get_close_matches(str(key), known.split(), n=1)
                yield (*path, key), f"is not a key here; did you mean {near[0] if near else ', '.join(known.split())}?"


def _shape(data: dict[str, Any], misspelt: set[KeyPath]) -> Iterator[Complaint]:
    """Yields what is missing or of another kind than it must be; `misspelt`: where a strange key may be the missing one."""
    for error in Draft202012Validator(SHAPE).iter_errors(data):
        place = tuple(error.absolute_path)
        if error.validator == "required" and place in misspelt:
            continue
        if "rayStartParams" in place:
            yield place, f"is {error.instance}, but must be text; write it in quotation marks"
        else:
            yield place, f"{error.message.splitlines()[0][:200]}; mend that, Kubernetes refuses it"


def _groups(data: dict[str, Any]) -> list[tuple[KeyPath, dict[str, Any]]]:
    """Returns the group of the head and those of workers with their places."""
    workers = _at(data, CLUSTER).get("workerGroupSpecs")
    groups: list[tuple[KeyPath, dict[str, Any]]] = [(HEAD, _at(data, HEAD))]
    for i, group in enumerate(workers if isinstance(workers, list) else []):
        groups.append(((*CLUSTER, "workerGroupSpecs", i), group if isinstance(group, dict) else {}))
    return groups


def _head(data: dict[str, Any]) -> Iterator[Complaint]:
    head = _at(data, HEAD)
    yield from _amounts(HEAD, head)
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
        yield from _amounts(place, group)


def _amounts(place: KeyPath, group: dict[str, Any]) -> Iterator[Complaint]:
    """Yields what a container asks for beyond its limit; of GPUs both must be the same."""
    for container in _containers(group):
        resources = container.get("resources") or {}
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        for key, wanted in requests.items():
            limit = limits.get(key, 0 if key.startswith("nvidia.com/") else wanted)
            if _amount(wanted) > _amount(limit) or (key.startswith("nvidia.com/") and _amount(wanted) != _amount(limit)):
                yield place, f"{container.get('name')} requests {key} {wanted}, but its limit is {limit}; make them the same"


def _amount(text: Any) -> float:
    """Returns a quantity of Kubernetes as a number."""
    digits = str(text).rstrip("mkKMGTPEi")
    return float(digits) * _UNITS[str(text)[len(digits) :]]


def _volume(data: dict[str, Any]) -> Iterator[Complaint]:
    """Yields pods that do not see the storage of the sweep."""
    found = re.search(r"--storage[= ]\s*(\S+)", str(_at(data, ("spec",)).get("entrypoint", "")))
    if not found:
        yield ("spec", "entrypoint"), "names no --storage; give a folder on the shared volume, or a URI"
        return
    storage = found[1]
    if "://" in storage:
        return
    claims: set[str] = set()
    for place, group in _groups(data):
        volumes = (((group.get("template") or {}).get("spec") or {}).get("volumes")) or []
        claim_of = {v.get("name"): (v.get("persistentVolumeClaim") or {}).get("claimName") for v in volumes}
        for container in _containers(group):
            mounts = [m for m in container.get("volumeMounts") or [] if f"{storage}/".startswith(f"{m.get('mountPath')}/")]
            claim = claim_of.get(mounts[0].get("name")) if mounts else None
            if not claim:
                yield place, f"{container.get('name')} does not see {storage}; mount the shared claim there"
            elif mounts[0].get("readOnly"):
                yield place, f"{container.get('name')} mounts {storage} readOnly; take that out, checkpoints are written there"
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
    """Returns the mapping at a place of the file, an empty one where there is none."""
    for key in path:
        if isinstance(data, list) and isinstance(key, int):
            data = data[key]
        else:
            data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}
