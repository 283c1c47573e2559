"""Rows of equal length out of documents, written as they come into a memory-mapped Arrow file."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import types

from prolu_tune.activations.arrow_files import DamagedFileError, fixed_rows, open_mapped
from prolu_tune.activations.documents import Piece
from prolu_tune.errors import InputError

ROWS_PER_BATCH = 8192
PIECE_CHARACTERS = 1 << 20
"""Longest text given to the tokenizer at once; longer ones are cut at a space."""


class Packer:
    """Cuts documents into rows of `context_length` tokens.

    Text is tokenised without special tokens, documents follow each other with EOS between them, and the whole is cut:
    no token is lost but the last row's. Token lists are cut one by one and their remainders dropped.
    """

    def __init__(
        self,
        *,
        context_length: int,
        vocab_size: int,
        tokenizer: Any | None,
        bos_token_id: int | None,
        separator_id: int | None,
        model: str,
    ) -> None:
        """Args:
        context_length: tokens per row.
        vocab_size: ids must be below it.
        tokenizer: a fast transformers tokenizer; None if the model has none, which only token ids allow.
        bos_token_id: written over position 0 of every row; None leaves it.
        separator_id: put between text documents; None puts nothing.
        model: the model's name, for messages.
        """
        self.context_length = context_length
        self.dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)
        self._vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._bos = bos_token_id
        self._separator = separator_id
        self._model = model

    def rows(self, pieces: Iterable[Piece], *, where: str) -> Iterator[np.ndarray]:
        """Yields blocks of rows (n, context_length) in document order.

        Raises:
            InputError: if an id is beyond the vocabulary or text comes without a tokenizer.
        """
        rest = np.empty(0, self.dtype)
        longest = 0
        for piece in pieces:
            if piece.is_text:
                tokens = np.concatenate([rest, *self._text_tokens(piece, where)])
                kept = len(tokens) // self.context_length * self.context_length
                rest = tokens[kept:].copy()
                block = tokens[:kept].reshape(-1, self.context_length)
            else:
                block, length = self._cut_lists(piece.column, where)
                longest = max(longest, length)
            if len(block):
                if self._bos is not None:
                    block = block.copy() if not block.flags.writeable else block
                    block[:, 0] = self._bos
                yield block
        if 0 < longest < self.context_length:
            raise InputError(
                f"{where}: the longest row holds {longest} tokens, fewer than activations.context_length "
                f"{self.context_length}; lower it to {longest} or less"
            )

    def _text_tokens(self, piece: Piece, where: str) -> list[np.ndarray]:
        if self._tokenizer is None:
            raise InputError(
                f"{where} holds text, but {self._model} has no tokenizer; put its tokenizer into the model folder "
                "or give token ids (a column input_ids)"
            )
        texts: list[str] = []
        ends: list[bool] = []
        for document in piece.column.to_pylist():
            parts = list(_text_parts(document))
            texts += parts
            ends += [False] * (len(parts) - 1) + [True] * bool(parts)
        if ends and piece.continued:
            ends[-1] = False
        backend = self._tokenizer.backend_tokenizer
        out: list[np.ndarray] = []
        for encoding, end in zip(backend.encode_batch_fast(texts, add_special_tokens=False), ends, strict=True):
            ids = encoding.ids
            if end and self._separator is not None:
                ids.append(self._separator)
            out.append(self._checked(np.array(ids, np.int64), where))
        return out

    def _cut_lists(self, column: pa.Array, where: str) -> tuple[np.ndarray, int]:
        """Returns the rows of lists of ids, and the longest list's length."""
        values = self._checked(column.flatten().to_numpy(zero_copy_only=False), where)
        if types.is_fixed_size_list(column.type):
            lengths = np.full(len(column), column.type.list_size)
        else:
            lengths = np.diff(column.offsets.to_numpy(zero_copy_only=False)).astype(np.int64)
        longest = int(lengths.max(initial=0))
        ctx = self.context_length
        if len(lengths) and (lengths == longest).all():
            whole = longest // ctx * ctx
            return values.reshape(len(lengths), longest)[:, :whole].reshape(-1, ctx), longest
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        cuts = [values[start : start + length // ctx * ctx] for start, length in zip(starts, lengths, strict=True)]
        return (np.concatenate(cuts) if cuts else values[:0]).reshape(-1, ctx), longest

    def _checked(self, ids: np.ndarray, where: str) -> np.ndarray:
        if len(ids) and (ids.min() < 0 or ids.max() >= self._vocab_size):
            wrong = int(ids.max()) if ids.max() >= self._vocab_size else int(ids.min())
            raise InputError(
                f"{where} holds token id {wrong}, but {self._model} knows ids 0 to {self._vocab_size - 1}; "
                "the data were tokenised for another model: give data for this one, or text"
            )
        return ids.astype(self.dtype)


def _text_parts(document: str) -> Iterator[str]:
    start = 0
    while len(document) - start > PIECE_CHARACTERS:
        cut = document.rfind(" ", start + 1, start + PIECE_CHARACTERS)
        end = cut if cut > start else start + PIECE_CHARACTERS
        yield document[start:end]
        start = end
    if document[start:]:
        yield document[start:]


def write_rows(path: Path, blocks: Iterable[np.ndarray], *, context_length: int, dtype: np.dtype[Any]) -> None:
    """Writes blocks of rows into an Arrow file as they come; memory stays at one batch of rows."""
    empty = fixed_rows(np.empty((0, context_length), dtype), name="tokens")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, empty.schema) as writer:
        held: list[np.ndarray] = []
        count = 0
        for block in blocks:
            held.append(block)
            count += len(block)
            if count >= ROWS_PER_BATCH:
                writer.write_batch(fixed_rows(np.ascontiguousarray(np.concatenate(held)), name="tokens"))
                held, count = [], 0
        if count:
            writer.write_batch(fixed_rows(np.ascontiguousarray(np.concatenate(held)), name="tokens"))


class TokenFile:
    """Rows of token ids in a memory-mapped Arrow file."""

    def __init__(self, path: Path, *, context_length: int) -> None:
        """Opens and verifies the file.

        Raises:
            DamagedFileError: if it is not what was written.
        """
        _, self._batches = open_mapped(path)
        if any(batch.shape[1] != context_length or batch.dtype.kind not in "iu" for batch in self._batches):
            raise DamagedFileError(f"{path.name} does not hold rows of {context_length} token ids")
        self._starts = np.concatenate([[0], np.cumsum([len(batch) for batch in self._batches])]).astype(np.int64)
        self.num_rows = int(self._starts[-1])
        self._context_length = context_length

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Returns the rows (n, context_length) at these indices, int32."""
        out = np.empty((len(indices), self._context_length), np.int32)
        which = np.searchsorted(self._starts, indices, side="right") - 1
        for number, batch in enumerate(self._batches):
            chosen = which == number
            out[chosen] = batch[indices[chosen] - self._starts[number]]
        return out
