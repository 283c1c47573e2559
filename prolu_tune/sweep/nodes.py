"""The node servers of a sweep, one per machine that can hold a trial: started as machines join, watched, told to stop."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, remove_placement_group

from prolu_tune.errors import SurroundingsError
from prolu_tune.search.space import Resources
from prolu_tune.sweep import ray_setup
from prolu_tune.sweep.driver import SweepDriver
from prolu_tune.sweep.ray_setup import Node, trials_on
from prolu_tune.sweep.settings import NodeType, WorkerSettings
from prolu_tune.sweep.worker import answer, start_server

LOOK_EVERY_S = 0.5
"""How often servers are asked what they are at, and told to stop."""
WAITING = "waiting for a machine that can hold a trial"
COUNT_EVERY_S = 2.0
"""How often the machines of the cluster are counted."""


class NodeServers:
    """The language-model processes of a cluster and the thread that looks after them; a context manager."""

    def __init__(
        self, settings: WorkerSettings, driver: SweepDriver, resources: Resources, node_types: Sequence[NodeType]
    ) -> None:
        """Starts nothing yet."""
        self._settings = settings
        self._driver = driver
        self._resources = resources
        self._node_types = node_types
        self._nodes: dict[str, Node] = {}
        self._servers: dict[str, Any] = {}
        self._told: set[str] = set()
        self._asked: dict[Any, str] = {}
        self._busy: dict[str, tuple[str, int | None, int | None]] = {}
        self._tokens: dict[tuple[str, int], dict[str, int]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node-servers", daemon=True)

    def __enter__(self) -> "NodeServers":
        self._count()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stops watching and ends the servers, whose memory others may want."""
        self._done.set()
        self._thread.join()
        for server in self._servers.values():
            ray.kill(server)

    def check(self, num_tokens: int) -> None:
        """Waits for a machine that can hold a trial, then has all those that are there check storage, data and model.

        Raises:
            InputError: what a person wrote does not fit model or data.
            SurroundingsError: a machine does not see the storage, or its process or disk failed.
        """
        self._wait_for_a_machine()
        servers = dict(self._servers)
        if self._settings.storage_token:
            refused = [refusal for refusal in self._ask_all(servers, "check_storage", self._settings) if refusal]
            if refused:
                raise SurroundingsError(
                    f"not every machine of the cluster sees the storage ({'; '.join(refused)}); mount the same file system "
                    "at the same place everywhere, or give --storage s3://BUCKET/PREFIX, then run the same command again"
                )
        self._ask_all(servers, "check", num_tokens)

    def tokens(self) -> dict[str, int]:
        """Returns how many tokens all servers, those of lost machines included, passed through their language models."""
        for part in self._ask_all(dict(self._servers), "state", lost=dict):
            self._note_tokens(part)
        return {part: sum(counts[part] for counts in self._tokens.values()) for part in ("train", "all")}

    def _ask_all(
        self, servers: dict[str, Any], method: str, *arguments: Any, lost: Callable[[], Any] | None = None
    ) -> list[Any]:
        """Returns the servers' answers, asked at once; `lost()` in place of one whose machine is gone meanwhile."""
        asked = {node: server.call.remote(method, *arguments) for node, server in servers.items()}
        answers = []
        for node, reference in asked.items():
            try:
                answers.append(answer(reference))
            except SurroundingsError:
                if lost is None and node in {found.node_id for found in ray_setup.nodes()}:
                    raise
                answers.append(lost() if lost else None)
        return answers

    def _wait_for_a_machine(self) -> None:
        """Waits until some machine can hold a trial, which is what makes the autoscaler start one."""
        if self._servers:
            return
        self._driver.screen.phase(WAITING)
        bundle: dict[str, float] = {"CPU": self._resources.cpus_per_trial}
        if self._resources.gpus_per_trial:
            bundle["GPU"] = self._resources.gpus_per_trial
        wish = placement_group([bundle])
        try:
            while not self._servers and not self._driver.stopping:
                time.sleep(LOOK_EVERY_S)
        finally:
            remove_placement_group(wish)

    def _run(self) -> None:
        counted = time.monotonic()
        while not self._done.wait(LOOK_EVERY_S):
            if time.monotonic() - counted > COUNT_EVERY_S:
                counted = time.monotonic()
                self._count()
            if self._driver.stopping:
                for node in self._servers.keys() - self._told:
                    self._servers[node].call.options(max_task_retries=0).remote("stop")
                    self._told.add(node)
            self._look()

    def _count(self) -> None:
        """Gives every new machine that can hold a trial a server, and forgets those that are gone."""
        try:
            found = {node.node_id: node for node in ray_setup.nodes()}
        except RayError:
            return  # the head does not answer for a moment; what runs goes on
        usable = {key: node for key, node in found.items() if trials_on(node, self._resources)}
        for key, node in usable.items():
            if key not in self._servers:
                self._servers = self._servers | {key: start_server(self._settings, key)}
                if self._nodes:
                    self._driver.screen.note(f"{node.name} joined; {len(self._servers)} machines hold trials")
        for key in self._servers.keys() - usable.keys():
            self._servers = {other: server for other, server in self._servers.items() if other != key}
            self._busy.pop(key, None)
            self._driver.screen.note(f"{self._nodes[key].name} is gone; its trials go on elsewhere from their last checkpoints")
        self._nodes |= usable
        self._driver.capacity = ray_setup.most_trials(self._resources, list(found.values()), self._node_types)

    def _look(self) -> None:
        """Takes the answers that have come, asks those servers that owe none, and shows one thing that is being done."""
        owing = set(self._asked.values())
        for node, server in self._servers.items():
            if node not in owing:
                self._asked[server.call.options(max_task_retries=0).remote("state")] = node
        ready, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=LOOK_EVERY_S) if self._asked else ([], [])
        for reference in ready:
            node = self._asked.pop(reference)
            try:
                state: Any = ray.get(reference)
            except RayError:
                continue
            self._note_tokens(state)
            for note in state["notes"]:
                self._driver.screen.note(note)
            self._busy[node] = (state["work"], state["done"], state["total"])
        idle = ("" if self._servers else WAITING, None, None)
        work, done, total = next((busy for busy in self._busy.values() if busy[0]), idle)
        self._driver.screen.phase(work, done=done, total=total)

    def _note_tokens(self, state: dict[str, Any]) -> None:
        if state:
            self._tokens[state["host"], state["pid"]] = state["tokens"]
