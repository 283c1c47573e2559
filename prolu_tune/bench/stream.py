"""The stream of activations: how fast a trial reads it, and how fast the language model makes it.

Making: tokens a second of the language model to the hook, where it stops, beside the whole model; and of whole chunks,
shuffled and written. Reading: batches of float32 out of chunks that lie in the cache, the first time (checksums are
verified) and again. `--rivals` keeps cores busy meanwhile.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from prolu_tune.activations.source import ActivationSource
from prolu_tune.activations.stream import ActivationStream
from prolu_tune.bench.options import CLOCKS, check_device, show
from prolu_tune.bench.source import SourceOptions, fresh_source, source_parser

READS = 5


class StreamOptions(SourceOptions):
    """The flags of model and data and this measurement's own."""

    rounds: int
    rivals: int


def main() -> None:
    """Prints a table, or with `--json` one line of JSON.

    Raises:
        InputError: if the device or the model is not to be had.
    """
    options = parser().parse_args(namespace=StreamOptions())
    show(measure(options), as_json=options.json)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of this measurement's flags."""
    made = source_parser("stream", __doc__, tokens=65_536, batch=4096)
    made.add_argument("--rounds", type=int, default=3, help="passes of each kind; medians are printed")
    made.add_argument("--rivals", type=int, default=0, help="processes that compute all the time")
    return made


def measure(options: StreamOptions) -> dict[str, float | int | str]:
    """Returns tokens a second of each kind.

    Raises:
        InputError: if the device or the model is not there.
    """
    check_device(options.device)
    with fresh_source(options) as source, _busy(options.rivals):
        layout, ctx = source.layout, source.config.context_length
        num_chunks = layout.num_chunks(options.tokens)
        makes = [_seconds(lambda chunk=chunk: source.ensure(chunk), options) for chunk in range(num_chunks)]
        rows = torch.from_numpy(source.rows.take("train", epoch=0, start=0, count=32 * max(1, 4096 // (32 * ctx))).copy())
        to_hook: list[float] = []
        whole: list[float] = []
        for _ in range(options.rounds + 1):
            to_hook.append(_seconds(lambda: [source.language_model.activations(part) for part in rows.split(32)], options))
            whole.append(_seconds(lambda: [_whole_pass(source, part) for part in rows.split(32)], options))
        reads = [_seconds(lambda: _read(source, options, num_chunks), options) for _ in range(READS)]
    tokens = num_chunks * layout.chunk_tokens
    to_hook_s, whole_s = statistics.median(to_hook[1:]), statistics.median(whole[1:])
    return {
        "lm_to_hook_tokens_per_s": rows.numel() / to_hook_s,
        "lm_whole_tokens_per_s": rows.numel() / whole_s,
        "whole_over_to_hook": whole_s / to_hook_s,
        "chunks_made_tokens_per_s": layout.chunk_tokens / statistics.median(makes),
        "first_read_tokens_per_s": tokens / reads[0],
        "read_tokens_per_s": tokens / statistics.median(reads[1:]),
        "tokens": tokens,
        "d_in": layout.d_in,
        **{name: getattr(options, name) for name in ("batch", "threads", "rivals", "clock", "model", "hook")},
        "torch": torch.__version__,
    }


def _seconds(run: Callable[[], object], options: SourceOptions) -> float:
    now = CLOCKS[options.clock]
    began = now()
    run()
    if options.device != "cpu":
        torch.cuda.synchronize()
    return now() - began


def _whole_pass(source: ActivationSource, rows: torch.Tensor) -> None:
    """All layers and the logits, but not their losses."""
    with torch.no_grad():
        source.language_model.bridge(rows.to(source.language_model.device, torch.long), return_type="logits")


def _read(source: ActivationSource, options: SourceOptions, num_chunks: int) -> None:
    stream = ActivationStream(source.layout, source.ensure)
    tokens = num_chunks * source.layout.chunk_tokens
    for batch in stream.batches(0, batch_size=options.batch, num_tokens=tokens):
        batch.to(options.device, torch.float32)


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """Runs processes that compute without end until the block does."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
