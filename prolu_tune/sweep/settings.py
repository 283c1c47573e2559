"""What the processes of a sweep are told; light enough to be imported by a driver that needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from prolu_tune.config.trial import ActivationConfig, EvaluationConfig
from prolu_tune.search.space import SearchSpace


@dataclass(frozen=True)
class NodeType:
    """A kind of machine that a cluster's autoscaler may start."""

    name: str
    cpus: float
    gpus: float
    most: int
    """How many of it at once."""


@dataclass(frozen=True)
class Machines:
    """Where trials run: a Ray cluster at `address` (None: Ray is started on this machine), and what it may grow by."""

    address: str | None = None
    node_types: tuple[NodeType, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """What a node server is made from; travels to every node."""

    activations: ActivationConfig
    evaluation: EvaluationConfig
    cache_dir: str | None
    """Folder of chunks, tokenised rows and baselines. None: on the node's own disk, where the node keeps its scratch files."""
    device: str


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a trial's process needs to know of the sweep; travels with every assignment."""

    sweep_folder: str
    """The sweep's folder on storage that all nodes see; with `mirror_uri` the driver's own, which no other node sees."""
    mirror_uri: str | None
    """Where trials' folders are mirrored to, if they lie on each node's own disk."""
    storage_token: str
    """What the driver wrote into the shared storage to see whether every node reads it; empty on a single machine."""
    namespace: str
    """Ray's namespace of this driver's node servers."""
    node: NodeSettings
    gpus_per_trial: float
    accept_numerics: bool = False
    """Trials may go on from checkpoints that were made with other numerics."""


def node_settings(space: SearchSpace, storage: Path, *, cluster: bool = False) -> NodeSettings:
    """Returns the settings of a sweep's node servers.

    On a cluster the activations lie on each node's own disk: to compute a chunk where it is used costs less than to send it,
    and a network file system would carry every batch of every trial.
    """
    return NodeSettings(
        activations=space.activations,
        evaluation=space.evaluation,
        cache_dir=None if cluster else str(storage.absolute() / "cache"),
        device=space.device,
    )
