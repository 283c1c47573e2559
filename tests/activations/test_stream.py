from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prolu_tune.activations.cache import ChunkStore, chunk_name
from prolu_tune.activations.packing import TokenFile
from prolu_tune.activations.rows import DataShards, TokenRows
from prolu_tune.activations.stream import ActivationStream, StreamLayout, check_enough, plan_layout, token_order
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError

CHUNKS, TOKENS, D_IN = 5, 24, 4


class _Rows(TokenFile):
    """A file of `num_rows` rows that are never read."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows


def layout_of(num_rows: int, **config: Any) -> StreamLayout:
    full = ActivationConfig(context_length=8, chunk_tokens=1024, train_range=(0.0, 0.5), eval_range=(0.5, 1.0), **config)
    shards = DataShards("data", "id", 1, lambda _: _Rows(num_rows), streamed=False)
    return plan_layout(TokenRows(shards, full), full, d_in=D_IN)


@pytest.mark.parametrize(
    ("num_rows", "rows_per_chunk", "chunks"),
    [(20, 10, 1), (256, 128, 1), (510, 255, 1), (512, 128, 2), (1000, 166, 3), (2000, 142, 7)],
)
def test_local_rows_are_divided_evenly_into_chunks_of_at_least_the_asked_size(
    num_rows: int, rows_per_chunk: int, chunks: int
) -> None:
    layout = layout_of(num_rows)
    assert (layout.rows_per_chunk, layout.chunks_per_epoch) == (rows_per_chunk, chunks)
    assert num_rows // 2 - rows_per_chunk * chunks < chunks


def test_without_bos_a_row_gives_one_token_less() -> None:
    assert layout_of(512).chunk_tokens == 128 * 8
    assert layout_of(512, train_on_bos=False).chunk_tokens == 128 * 7
    with pytest.raises(
        InputError, match="train_on_bos: false leaves out position 0, which is BOS only with overwrite_bos: true"
    ):
        layout_of(512, train_on_bos=False, overwrite_bos=False)


def test_chunks_of_later_epochs_start_over_in_the_rows() -> None:
    layout = layout_of(1000, epochs=2)
    assert [layout.rows_of(chunk) for chunk in range(5)] == [(0, 0), (0, 166), (0, 332), (1, 0), (1, 166)]
    assert layout.num_tokens == 2 * 3 * 166 * 8
    assert layout.locate(166 * 8 * 4 + 5) == (4, 5)
    assert [layout.num_chunks(tokens) for tokens in (1, 166 * 8, 166 * 8 + 1)] == [1, 1, 2]


def test_a_run_longer_than_the_data_is_refused_with_the_numbers_and_the_remedy() -> None:
    config = ActivationConfig(
        context_length=8, chunk_tokens=1024, train_range=(0.0, 0.5), eval_range=(0.5, 1.0), dataset="d.txt"
    )
    layout = layout_of(1000)
    check_enough(layout, config, num_tokens=3984)
    with pytest.raises(
        InputError,
        match=r"is 10,000, but .* of d\.txt holds 3,984 tokens, .* lower num_tokens to 3,984, set activations\.epochs to 3",
    ):
        check_enough(layout, config, num_tokens=10_000)
    check_enough(layout_of(1000, epochs=3), config, num_tokens=10_000)


def test_no_row_at_all_is_refused() -> None:
    with pytest.raises(InputError, match=r"train_range \[0\.0, 0\.5\] of data holds no row of 8 tokens"):
        layout_of(0)


def test_tokens_are_permuted_over_the_chunk_and_differently_in_each() -> None:
    layout, config = layout_of(512), ActivationConfig(seed=3)
    orders = [token_order(layout, config, chunk) for chunk in range(2)]
    assert all(sorted(order.tolist()) == list(range(1024)) for order in orders)
    assert orders[0].tolist() != orders[1].tolist()
    assert token_order(layout, ActivationConfig(seed=4), 0).tolist() != orders[0].tolist()
    # Far from its row: neighbours in a row are a third of the chunk apart on average.
    assert np.abs(np.diff(orders[0])).mean() > 1024 / 4


@pytest.fixture
def stream(tmp_path: Path) -> tuple[ActivationStream, list[int]]:
    """A stream whose token t has value t in every dimension, and the chunks asked for so far."""
    store, asked = ChunkStore(tmp_path, "f" * 64, max_bytes=10**9), []
    layout = StreamLayout(rows_per_chunk=3, tokens_per_row=8, chunks_per_epoch=CHUNKS, epochs=1, d_in=D_IN)

    def ensure(chunk: int) -> Path:
        asked.append(chunk)
        values = np.arange(chunk * TOKENS, (chunk + 1) * TOKENS, dtype=np.float16)
        return store.ensure(chunk_name(chunk), lambda: np.repeat(values[:, None], D_IN, axis=1))

    return ActivationStream(layout, ensure), asked


Stream = tuple[ActivationStream, list[int]]


@pytest.mark.parametrize("batch_size", [1, 5, 8, 24, 30, 60])
@pytest.mark.parametrize("first_token", [0, 7, 24, 50])
def test_batches_run_through_the_tokens_in_order_from_any_start(stream: Stream, batch_size: int, first_token: int) -> None:
    num_tokens = CHUNKS * TOKENS - 3
    batches = list(stream[0].batches(first_token, batch_size=batch_size, num_tokens=num_tokens))
    count = (num_tokens - first_token) // batch_size
    assert [tuple(batch.shape) for batch in batches] == [(batch_size, D_IN)] * count
    expected = torch.arange(first_token, first_token + count * batch_size).half()
    assert torch.equal(torch.cat([batch[:, 0] for batch in batches] or [expected]), expected)


def test_a_batch_inside_a_chunk_is_a_view_of_the_file_and_without_a_warning(
    stream: Stream, recwarn: pytest.WarningsRecorder
) -> None:
    batches = list(stream[0].batches(0, batch_size=8, num_tokens=24))
    addresses = [batch.data_ptr() for batch in batches]
    assert np.diff(addresses).tolist() == [8 * D_IN * 2] * 2
    assert not recwarn.list


def test_the_next_chunk_is_asked_for_while_the_present_one_is_used_and_none_beyond_the_end(stream: Stream) -> None:
    reader, asked = stream
    batches = reader.batches(0, batch_size=8, num_tokens=2 * TOKENS)
    next(batches)
    for _ in range(1000):
        if asked == [0, 1]:
            break
        torch.zeros(1000).sum()
    assert asked == [0, 1]
    assert len(list(batches)) == 5
    assert asked == [0, 1]
    assert list(reader.batches(2 * TOKENS, batch_size=8, num_tokens=2 * TOKENS)) == []


def test_an_error_while_a_chunk_is_made_reaches_the_reader(tmp_path: Path) -> None:
    def ensure(chunk: int) -> Path:
        raise InputError(f"no chunk {chunk}")

    layout = StreamLayout(rows_per_chunk=3, tokens_per_row=8, chunks_per_epoch=1, epochs=1, d_in=D_IN)
    with pytest.raises(InputError, match="no chunk 0"):
        next(ActivationStream(layout, ensure).batches(0, batch_size=8, num_tokens=24))
