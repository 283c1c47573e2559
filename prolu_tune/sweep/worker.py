"""What runs inside Ray's processes: an actor per node with the language model, and the function Tune calls for a trial."""

import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import ActorUnschedulableError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from prolu_tune.config.resolve import plan_trial
from prolu_tune.config.trial import TrialConfig
from prolu_tune.durable import replace_file
from prolu_tune.errors import InputError, OtherNumericsError, SurroundingsError
from prolu_tune.sweep.attempts import Attempt, out_of_memory
from prolu_tune.sweep.files import surroundings_error
from prolu_tune.sweep.place import TrialPlace
from prolu_tune.sweep.settings import NodeSettings, WorkerSettings
from prolu_tune.sweep.study import TrialResult

POLL_EVERY_S = 0.5
"""How often a trial looks whether it shall stop."""
SERVER_THREADS = 128
"""Calls that a node's server takes at once: a trial has at most three."""
SERVER_RETRIES = 3
"""How often a call is repeated when the server's process dies under it, by itself started again; each call may be repeated."""
SERVER_WAIT_S = 120.0
SERVER_LOOK_S = 0.5
LOST_NODE_S = 10.0
"""How long a trial that lost its node's server waits before it says so: on a lost node it will not live that long."""


class NodeActor:
    """Ray's wrapper of a `NodeServer`; the driver names it without importing torch."""

    def __init__(self, settings: NodeSettings) -> None:
        from prolu_tune.sweep.node import NodeServer
        from prolu_tune.training.numerics import share_one_heap

        share_one_heap()
        self._server = NodeServer(settings)

    def call(self, method: str, *arguments: Any) -> Any:
        """Returns what the server's method returns."""
        return getattr(self._server, method)(*arguments)


def start_server(settings: WorkerSettings, node_id: str) -> Any:
    """Returns the handle of a new server on a node. It ends with the driver that started it."""
    return (
        ray.remote(NodeActor)
        .options(
            name=_server_name(node_id),
            namespace=settings.namespace,
            num_cpus=0,
            max_concurrency=SERVER_THREADS,
            max_restarts=-1,
            max_task_retries=SERVER_RETRIES,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        .remote(settings.node)
    )


def find_server(settings: WorkerSettings) -> Any:
    """Returns the handle of the server of the node this process runs on; on a node that just joined it may take a moment.

    Raises:
        SurroundingsError: if the driver gives this node none.
    """
    node_id = ray.get_runtime_context().get_node_id()
    deadline = time.monotonic() + SERVER_WAIT_S
    while True:
        try:
            return ray.get_actor(_server_name(node_id), namespace=settings.namespace)
        except ValueError:
            if time.monotonic() > deadline:
                raise SurroundingsError(
                    f"{socket.gethostname()} has had no language-model process for {SERVER_WAIT_S:g} s; "
                    "see Ray's logs there, then run the same command again"
                ) from None
            time.sleep(SERVER_LOOK_S)


def _server_name(node_id: str) -> str:
    return f"node-{node_id[:12]}"


def ask(node: Any, method: str, *arguments: Any) -> Any:
    """Returns the answer of a node server's method; see `answer`."""
    return answer(node.call.remote(method, *arguments))


def answer(reference: Any) -> Any:
    """Returns what a node server answers; our own errors arrive as what they are.

    Raises:
        InputError: what the person wrote does not fit the model or the data.
        SurroundingsError: the node's process or its disk failed.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, InputError | SurroundingsError):
            raise error.cause from None
        raise
    except (RayActorError, ActorUnschedulableError) as error:
        time.sleep(LOST_NODE_S)
        raise SurroundingsError(f"the process with the language model died ({str(error).strip().splitlines()[0]})") from error


def ray_trial(assignment: dict[str, Any]) -> None:
    """Runs one trial for Tune and reports its result, an interruption or a failure of the surroundings.

    An error that would come again is a result, so that Tune does not repeat it; a lost process is repeated by Tune.
    """
    settings: WorkerSettings = assignment["settings"]
    place = TrialPlace(settings, assignment["index"], assignment["config"])
    try:
        with place, Attempt(place.folder, driver=settings.namespace) as attempt:
            if attempt.lack_of_memory:
                result = TrialResult(outcome="failed", record={}, message=attempt.lack_of_memory)
            else:
                result = _run(assignment, settings, place.folder)
    except OtherNumericsError as error:
        tune.report({"refused": str(error)})
    except (SurroundingsError, OSError) as error:
        told = surroundings_error(error, place.folder) if isinstance(error, OSError) else error
        tune.report({"surroundings": str(told)})
    except Exception as error:  # a trial's own error must not end the others
        place.folder.mkdir(parents=True, exist_ok=True)
        replace_file(place.folder / "error.txt", [traceback.format_exc().encode()])
        place.push()
        message = _message(error)
        tune.report({"result": asdict(TrialResult(outcome="failed", record={}, message=message))})
    else:
        if result is not None:
            place.remove()
        tune.report({"interrupted": True} if result is None else {"result": asdict(result)})


def _message(error: Exception) -> str:
    if memory := out_of_memory(error):
        return memory
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if isinstance(error, InputError) else f"{type(error).__name__}: {lines[-1]}"


def _run(assignment: dict[str, Any], settings: WorkerSettings, folder: Path) -> TrialResult | None:
    """The trial itself; torch is imported here, in the process that needs it."""
    from prolu_tune.activations.stream import ActivationStream
    from prolu_tune.sweep.trial import run_trial

    config = TrialConfig.model_validate_json(assignment["config"])
    node = find_server(settings)
    layout = _enter(node, settings)
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
        report=_reporter(plan.num_steps, every_s=assignment["report_every_s"]),
        folder=folder,
        device=settings.node.device,
        should_stop=_stop_poll(node),
        stop_rule=assignment["stop_rule"],
        accept_numerics=settings.accept_numerics,
        say=lambda text: ask(node, "note", f"trial {assignment['index']}: {text}"),
    )


def _enter(node: Any, settings: WorkerSettings) -> Any:
    """Returns the stream's layout once this node turned out to see the storage and the data, and fences the GPU's memory."""
    refused = ask(node, "check_storage", settings) if settings.storage_token else None
    if refused:
        raise SurroundingsError(f"a machine of the cluster does not see the storage ({refused}); mend that, then run again")
    try:
        layout = ask(node, "describe")
    except InputError as error:
        # On another node it was well: the driver had it checked before the first trial.
        raise SurroundingsError(f"{socket.gethostname()}: {error}") from error
    limit_gpu_memory(ask(node, "gpu_share", settings.gpus_per_trial))
    return layout


def limit_gpu_memory(share: float | None) -> None:
    """Lets this process allocate no more than a share of its GPU's memory; None: no limit.

    Ray's fractional GPUs are a count only. A trial that wants more fails alone instead of pulling its neighbours down.
    """
    if share is None:
        return
    import torch

    torch.cuda.set_per_process_memory_fraction(share)


def _reporter(num_steps: int, *, every_s: float) -> Callable[[dict[str, float]], None]:
    """Returns a function that tells the driver a trial's newest row, not more often than asked; all rows are on disk."""
    started = last = time.monotonic()
    first_tokens: float | None = None

    def report(row: dict[str, float]) -> None:
        nonlocal last, first_tokens
        now = time.monotonic()
        if first_tokens is None:
            first_tokens = row["tokens"]
        if now - last < every_s:
            return
        last = now
        speed = (row["tokens"] - first_tokens) / max(now - started, 1e-3)
        tune.report({"row": row | {"num_steps": num_steps, "tokens_per_s": speed}})

    return report


def _stop_poll(node: Any) -> Callable[[], bool]:
    """Returns a function that says whether trials shall save and leave; cheap enough to ask after each step.

    The question is asked and its answer taken at different steps, so that training never waits for it.
    """
    last = 0.0
    asked: Any = None
    seen = False

    def should_stop() -> bool:
        nonlocal last, asked, seen
        now = time.monotonic()
        if seen or now - last < POLL_EVERY_S:
            return seen
        last = now
        if asked is not None and ray.wait([asked], timeout=0)[0]:
            try:
                seen = bool(ray.get(asked))
            except RayError:
                seen = False  # the server is being started again, and will be told again
            asked = None
        if asked is None and not seen:
            asked = node.call.remote("stopping")
        return seen

    return should_stop
