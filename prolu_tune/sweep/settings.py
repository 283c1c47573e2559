"""What the processes of a sweep are told; light enough to be imported by a driver that needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from prolu_tune.config.trial import ActivationConfig, EvaluationConfig
from prolu_tune.search.space import SearchSpace


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """What a node server is made from; travels to every node."""

    activations: ActivationConfig
    evaluation: EvaluationConfig
    cache_dir: str
    device: str


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a trial's process needs to know of the sweep; travels with every assignment."""

    sweep_folder: str
    namespace: str
    node: NodeSettings


def node_settings(space: SearchSpace, storage: Path) -> NodeSettings:
    """Returns the settings of a sweep's node servers."""
    return NodeSettings(
        activations=space.activations,
        evaluation=space.evaluation,
        cache_dir=str(storage.absolute() / "cache"),
        device=space.device,
    )
