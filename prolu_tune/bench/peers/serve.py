"""The other end of `client`: answers lines of JSON with lines of JSON. Runs in the other libraries' environment."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(ready: dict[str, Any], answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Says what is ready, then answers each line of standard input until it ends."""
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def timed(run: Callable[[], object], clock: str) -> float:
    """Returns the seconds that a call takes.

    Args:
        run: the call.
        clock: `wall`, or `cpu`: this thread's CPU time.
    """
    now = time.thread_time if clock == "cpu" else time.perf_counter
    began = now()
    run()
    return now() - began
