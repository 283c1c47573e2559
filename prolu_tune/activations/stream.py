"""The stream of activations: how it is cut into chunks, and how a trial reads it in batches.

Chunk i is a pure function of its fingerprint and i: its rows are a stretch of the epoch's seeded order, its tokens a
seeded permutation over all of them. So every trial sees the same stream and any trial can start anywhere in it.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prolu_tune.activations.cache import ignore, open_or_remake
from prolu_tune.activations.rows import TokenRows, seeded_permutation
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError


@dataclass(frozen=True)
class StreamLayout:
    """How a stream is cut. All chunks hold the same number of tokens."""

    rows_per_chunk: int
    tokens_per_row: int
    chunks_per_epoch: int | None
    """None: a streamed data set whose end has not been seen; it is read once."""
    epochs: int
    """Passes that are allowed."""
    d_in: int

    @property
    def chunk_tokens(self) -> int:
        """Activations in a chunk."""
        return self.rows_per_chunk * self.tokens_per_row

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk's activations."""
        return self.chunk_tokens * self.d_in * 2

    @property
    def num_tokens(self) -> int | None:
        """Activations in all epochs, None if the end has not been seen."""
        return None if self.chunks_per_epoch is None else self.chunks_per_epoch * self.chunk_tokens * self.epochs

    def locate(self, token: int) -> tuple[int, int]:
        """Returns the chunk of a token of the stream and the token's place in it."""
        return divmod(token, self.chunk_tokens)

    def num_chunks(self, num_tokens: int) -> int:
        """Returns how many chunks hold the first `num_tokens` tokens."""
        return -(-num_tokens // self.chunk_tokens)

    def rows_of(self, chunk: int) -> tuple[int, int]:
        """Returns the epoch of a chunk and its first row in that epoch's order."""
        epoch, within = (0, chunk) if self.chunks_per_epoch is None else divmod(chunk, self.chunks_per_epoch)
        return epoch, within * self.rows_per_chunk


def plan_layout(rows: TokenRows, config: ActivationConfig, *, d_in: int) -> StreamLayout:
    """Returns how the training rows are cut: chunks of at least `chunk_tokens`, or one chunk if there are fewer than two.

    Local rows are divided evenly, so that fewer rows than there are chunks go unused in an epoch. Of a streamed data
    set no more is read than two chunks, unless several epochs are allowed.

    Raises:
        InputError: if the training range holds no row.
    """
    if not config.train_on_bos and not config.overwrite_bos:
        raise InputError(
            "activations.train_on_bos: false leaves out position 0, which is BOS only with overwrite_bos: true; set that too"
        )
    least = max(1, config.chunk_tokens // config.context_length)
    lazily = rows.shards.streamed and config.epochs == 1
    count, complete = rows.count("train", at_least=2 * least if lazily else None)
    if count == 0:
        raise InputError(
            f"activations.train_range {list(config.train_range)} of {rows.shards.name} holds no row of "
            f"{config.context_length} tokens; widen it, give more data, or lower activations.context_length"
        )
    chunks: int | None = max(1, count // least)
    if count < 2 * least:
        size = count
    elif rows.shards.streamed:
        size = least
        chunks = None if lazily and not complete else chunks
    else:
        size = count // (count // least)
    return StreamLayout(
        rows_per_chunk=size,
        tokens_per_row=config.context_length - (not config.train_on_bos),
        chunks_per_epoch=chunks,
        epochs=config.epochs,
        d_in=d_in,
    )


def check_enough(layout: StreamLayout, config: ActivationConfig, *, num_tokens: int) -> None:
    """Checks that a run of `num_tokens` fits into the data and the allowed epochs.

    Raises:
        InputError: if it does not; with the numbers.
    """
    have = layout.num_tokens
    if have is None or num_tokens <= have:
        return
    per_epoch = have // layout.epochs
    raise InputError(
        f"training.num_tokens is {num_tokens:,}, but activations.train_range {list(config.train_range)} of {config.dataset} "
        f"holds {per_epoch:,} tokens, with activations.epochs {layout.epochs} together {have:,}; lower num_tokens to {have:,}, "
        f"set activations.epochs to {-(-num_tokens // per_epoch)}, widen train_range, or give more data"
    )


def token_order(layout: StreamLayout, config: ActivationConfig, chunk: int) -> np.ndarray:
    """Returns for each token of a chunk, in row order, its place in the chunk."""
    return seeded_permutation(layout.chunk_tokens, 3, config.seed, chunk)


class ActivationStream:
    """The stream as a trial reads it: memory-mapped chunks, the next one made while the present one is used."""

    def __init__(
        self, layout: StreamLayout, ensure: Callable[[int], str | Path], *, say: Callable[[str], None] = ignore
    ) -> None:
        """Args:
        layout: as the node that makes the chunks has it.
        ensure: makes chunk i if it is missing and returns its file; may be a call to another process, is used from a thread.
        say: told about damaged files.
        """
        self.layout = layout
        self._ensure = ensure
        self._say = say

    def chunk(self, index: int) -> np.ndarray:
        """Returns a chunk (chunk_tokens, d_in), float16, memory-mapped.

        Raises:
            SurroundingsError: if it cannot be made or kept.
        """
        layout = self.layout
        return open_or_remake(lambda: Path(self._ensure(index)), tokens=layout.chunk_tokens, d_in=layout.d_in, say=self._say)

    def batches(self, first_token: int, *, batch_size: int, num_tokens: int) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Yields batches of float16 activations from a token of the stream on; no copy unless a batch spans two chunks.

        Args:
            first_token: where to start, 0 being the stream's beginning.
            batch_size: tokens per batch.
            num_tokens: where the stream ends for this reader; a last incomplete batch is left out.
        """
        end = first_token + (num_tokens - first_token) // batch_size * batch_size
        position = first_token
        index, offset = self.layout.locate(position)
        last = self.layout.locate(max(end - 1, 0))[0]
        pieces: list[np.ndarray] = []
        missing = batch_size
        coming = _Coming(self.chunk, index) if position < end else None
        while coming is not None:
            chunk = coming.result()
            coming = _Coming(self.chunk, index + 1) if index < last else None
            while position < end and offset < len(chunk):
                piece = chunk[offset : offset + missing]
                offset += len(piece)
                position += len(piece)
                pieces.append(piece)
                missing -= len(piece)
                if missing == 0:
                    yield torch.from_numpy(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
                    pieces, missing = [], batch_size
            index, offset = index + 1, 0


class _Coming:
    """A chunk on its way, opened in a daemon thread: a process that is told to end does not wait for it."""

    def __init__(self, get: Callable[[int], np.ndarray], index: int) -> None:
        self._answer: queue.SimpleQueue[np.ndarray | BaseException] = queue.SimpleQueue()
        threading.Thread(target=self._run, args=(get, index), daemon=True, name=f"chunk-{index}").start()

    def _run(self, get: Callable[[int], np.ndarray], index: int) -> None:
        try:
            self._answer.put(get(index))
        except BaseException as error:  # handed to the reader, whatever it is
            self._answer.put(error)

    def result(self) -> np.ndarray:
        """Returns the chunk, or raises what making it raised."""
        answer = self._answer.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer
