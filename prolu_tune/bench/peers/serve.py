"""The other end of `client`: answers lines of JSON with lines of JSON. Runs in the other libraries' environment."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def given() -> tuple[dict[str, Tensor], list[Tensor]]:
    """Returns the weights and the batches of the file on the command line; sets the threads asked for there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_file(options.data)
    return data, [tensor for name, tensor in sorted(data.items()) if name.startswith("x")]


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
