"""What runs inside Ray's processes: an actor per node with the language model, and the function Tune calls for a trial."""

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prolu_tune.config.resolve import plan_trial
from prolu_tune.config.trial import TrialConfig
from prolu_tune.durable import replace_file
from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.sweep.files import SweepFolder, surroundings_error
from prolu_tune.sweep.settings import NodeSettings, WorkerSettings
from prolu_tune.sweep.study import TrialResult

REPORT_EVERY_S = 1.0
"""Reports to the driver come no faster; every row is on disk anyway."""
POLL_EVERY_S = 0.5
"""How often a trial looks whether it shall stop."""


class NodeActor:
    """Ray's wrapper of a `NodeServer`; the driver names it without importing torch."""

    def __init__(self, settings: NodeSettings) -> None:
        from prolu_tune.sweep.node import NodeServer

        self._server = NodeServer(settings)

    def call(self, method: str, *arguments: Any) -> Any:
        """Returns what the server's method returns."""
        return getattr(self._server, method)(*arguments)


def node_actor(settings: WorkerSettings, node_id: str | None = None) -> Any:
    """Returns the handle of a node's server, started if the node has none.

    Args:
        node_id: Ray's id of the node; None: the one this process runs on.
    """
    node_id = node_id or ray.get_runtime_context().get_node_id()
    return (
        ray.remote(NodeActor)
        .options(
            name=f"node-{node_id[:12]}",
            namespace=settings.namespace,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_concurrency=64,
            max_restarts=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        .remote(settings.node)
    )


def ask(node: Any, method: str, *arguments: Any) -> Any:
    """Returns the answer of a node server's method; our own errors arrive as what they are.

    Raises:
        InputError: what the person wrote does not fit the model or the data.
        SurroundingsError: the node's process or its disk failed.
    """
    try:
        return ray.get(node.call.remote(method, *arguments))
    except RayTaskError as error:
        if isinstance(error.cause, InputError | SurroundingsError):
            raise error.cause from None
        raise
    except RayActorError as error:
        raise SurroundingsError(f"the process with the language model died ({error.error_msg})") from error


def ray_trial(assignment: dict[str, Any]) -> None:
    """Runs one trial for Tune and reports its result, an interruption or a failure of the surroundings.

    An error that would come again is a result, so that Tune does not repeat it; a lost process is repeated by Tune.
    """
    settings: WorkerSettings = assignment["settings"]
    folder = SweepFolder(Path(settings.sweep_folder)).trial(assignment["index"])
    try:
        result = _run(assignment, settings, folder)
    except (SurroundingsError, OSError) as error:
        told = surroundings_error(error, folder) if isinstance(error, OSError) else error
        tune.report({"surroundings": str(told)})
    except Exception as error:  # a trial's own error must not end the others
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "error.txt", [traceback.format_exc().encode()])
        message = _message(error)
        tune.report({"result": asdict(TrialResult(outcome="failed", record={}, message=message))})
    else:
        tune.report({"interrupted": True} if result is None else {"result": asdict(result)})


def _message(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if isinstance(error, InputError) else f"{type(error).__name__}: {lines[-1]}"


def _run(assignment: dict[str, Any], settings: WorkerSettings, folder: Path) -> TrialResult | None:
    """The trial itself; torch is imported here, in the process that needs it."""
    from prolu_tune.activations.stream import ActivationStream
    from prolu_tune.sweep.trial import run_trial

    config = TrialConfig.model_validate_json(assignment["config"])
    node = node_actor(settings)
    layout = ask(node, "describe")
    plan = plan_trial(config, d_in=layout.d_in)
    stream = ActivationStream(layout, lambda chunk: ask(node, "ensure_chunk", chunk), say=lambda text: ask(node, "note", text))
    batch_size, num_tokens = config.training.batch_size, config.training.batch_size * plan.num_batches

    def batches(first_token: int) -> Iterator[Any]:
        return stream.batches(first_token, batch_size=batch_size, num_tokens=num_tokens)

    return run_trial(
        config,
        plan=plan,
        batches=batches,
        evaluate=lambda sae_folder: ask(node, "evaluate", str(sae_folder)),
        report=_reporter(plan.num_steps),
        folder=folder,
        device=settings.node.device,
        should_stop=_stop_poll(SweepFolder(Path(settings.sweep_folder)).stop_file),
        stop_rule=assignment["stop_rule"],
    )


def _reporter(num_steps: int) -> Callable[[dict[str, float]], None]:
    """Returns a function that tells the driver a trial's newest row, at most once a second."""
    started = last = time.monotonic()
    first_tokens: float | None = None

    def report(row: dict[str, float]) -> None:
        nonlocal last, first_tokens
        now = time.monotonic()
        if first_tokens is None:
            first_tokens = row["tokens"]
        if now - last < REPORT_EVERY_S:
            return
        last = now
        speed = (row["tokens"] - first_tokens) / max(now - started, 1e-3)
        tune.report({"row": row | {"num_steps": num_steps, "tokens_per_s": speed}})

    return report


def _stop_poll(stop_file: Path) -> Callable[[], bool]:
    """Returns a function that says whether trials shall save and leave; cheap enough to ask after each step."""
    last = 0.0
    seen = False

    def should_stop() -> bool:
        nonlocal last, seen
        now = time.monotonic()
        if not seen and now - last > POLL_EVERY_S:
            last = now
            seen = stop_file.exists()
        return seen

    return should_stop
