"""The way between a client and the simulated tracking server, on which calls and answers are lost."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from simulator.clock import Killed, Process, current_process

if TYPE_CHECKING:
    from simulator.world import World


class UnansweredError(Exception):
    """What a client of the tracking server raises when there is no answer."""


def carry(world: "World", method: str, call: Callable[[], Any]) -> Any:
    """Carries a client's call to the server and its answer back."""
    process = current_process()
    if process is None:
        return call()
    if not process.alive:
        raise Killed
    name = f"mlflow: {method}"
    if world.clock.now < world.away_until:
        world.passed[name] += 1
        world.clock.sleep(0.2)
        raise UnansweredError("connection refused")
    struck = world.effect(name)
    world.clock.sleep(world.rng.choice((0.001, 0.01, 0.05)))
    if struck is None:
        return call()
    if struck == "error before":
        raise UnansweredError("connection reset by peer")
    if struck == "error after":
        call()
        raise UnansweredError("the answer was lost")
    if struck == "error late":
        _take_effect_later(world, call)
        raise UnansweredError("timed out")
    if struck == "slow":
        world.clock.sleep(world.fault_rng.choice((5.0, 40.0)))
        return call()
    if struck == "away":
        world.away_until = world.clock.now + world.fault_rng.choice((3.0, 30.0, 300.0))
        raise UnansweredError("connection refused")
    if struck == "refused":
        return call()
    world.happen(struck)
    answer = call()
    world.settled()
    return answer


def _take_effect_later(world: "World", call: Callable[[], Any]) -> None:
    def late() -> None:
        with contextlib.suppress(Exception):  # what the server answers reaches nobody
            call()

    # Past the tracker's pause of 1 s only early on: what a server does after the sweep has ended, nobody looks at again.
    delays = (0.05, 0.5, 1.2, 1.2) if world.clock.now < 0.5 else (0.05, 0.5, 0.9)
    world.clock.spawn(Process("server"), late, delay=world.fault_rng.choice(delays))
