from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prolu_tune.activations.hub import HubShards, open_hub
from prolu_tune.activations.packing import Packer
from prolu_tune.activations.rows import TokenRows, hub_shards
from prolu_tune.activations.stream import plan_layout
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError, SurroundingsError

Make = Callable[..., ActivationConfig]
NUM_SHARDS, ROWS = 10, 60


@pytest.fixture(scope="module")
def shard_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Parquet shards whose row r of shard s is [s, r] with 14 ids behind, twice a context of 8."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(NUM_SHARDS):
        ids = [[shard, row, *range(14)] for row in range(ROWS)]
        pq.write_table(pa.table({"input_ids": ids}), folder / f"{shard:03d}.parquet")
    return [str(file) for file in sorted(folder.iterdir())]


def stream(files: list[str], *, column: str | None = None) -> HubShards:
    import datasets

    dataset = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    return HubShards(dataset, name="owner/data", column=column, commit="c0ffee")


def rows_of(hub: HubShards, folder: Path, **config: Any) -> TokenRows:
    packer = Packer(context_length=8, vocab_size=300, tokenizer=None, bos_token_id=None, separator_id=None, model="tiny")
    shards = hub_shards(hub, packer, {"version": 1}, folder=folder)
    return TokenRows(shards, ActivationConfig(context_length=8, **config))


def test_a_shard_of_a_stream_is_read_on_its_own(shard_files: list[str]) -> None:
    hub = stream(shard_files)
    assert hub.num_shards == NUM_SHARDS
    for shard in (7, 2):
        documents = [value for piece in hub.read(shard) for value in piece.column.to_pylist()]
        assert documents == [[shard, row, *range(14)] for row in range(ROWS)]


def test_rows_of_a_stream_are_those_of_its_shards_and_each_shard_is_read_once(shard_files: list[str], tmp_path: Path) -> None:
    rows = rows_of(stream(shard_files), tmp_path, train_range=(0.0, 0.65), eval_range=(0.65, 0.75))
    count, complete = rows.count("train")
    assert (count, complete) == (6 * 2 * ROWS + ROWS, True)
    train = rows.take("train", epoch=0, start=0, count=count)
    assert {int(row[0]) for row in train[train[:, 2] == 0]} == set(range(7))
    held_out = rows.take("eval", epoch=0, start=0, count=rows.count("eval")[0])
    assert {int(row[0]) for row in held_out[held_out[:, 2] == 0]} == {6, 7}

    class Unreadable(HubShards):
        def read(self, shard: int) -> Any:
            raise AssertionError(f"shard {shard} was read again")

    cached = Unreadable(stream(shard_files)._dataset, name="owner/data", column=None, commit="c0ffee")
    again = rows_of(cached, tmp_path, train_range=(0.0, 0.65), eval_range=(0.65, 0.75))
    assert np.array_equal(again.take("train", epoch=0, start=0, count=count), train)


def test_a_long_stream_is_not_read_to_its_end(shard_files: list[str], tmp_path: Path) -> None:
    read: list[int] = []

    class Counting(HubShards):
        def read(self, shard: int) -> Any:
            read.append(shard)
            return super().read(shard)

    hub = Counting(stream(shard_files)._dataset, name="owner/data", column=None, commit="c0ffee")
    config = {"train_range": (0.0, 0.9), "eval_range": (0.9, 1.0), "chunk_tokens": 1024}
    rows = rows_of(hub, tmp_path, **config)
    layout = plan_layout(rows, ActivationConfig(context_length=8, **config), d_in=4)
    assert (layout.rows_per_chunk, layout.chunks_per_epoch) == (128, None)
    assert len(read) == 3
    known = plan_layout(rows, ActivationConfig(context_length=8, epochs=2, **config), d_in=4)
    assert (known.rows_per_chunk, known.chunks_per_epoch) == (128, 9 * 2 * ROWS // 128)
    assert len(read) == 9


def test_a_column_that_a_stream_lacks_is_refused(shard_files: list[str]) -> None:
    with pytest.raises(InputError, match=r"data set owner/data has no column text; its columns are: input_ids"):
        list(stream(shard_files, column="text").read(0))


def test_a_shard_that_cannot_be_read_is_the_surroundings_fault(shard_files: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(Path(shard_files[0]).read_bytes())
    hub = stream([shard_files[0], str(bad)])
    bad.unlink()
    with pytest.raises(SurroundingsError, match=r"shard 1 of 2: reading failed .* run the same command again"):
        list(hub.read(1))


def test_without_a_network_a_hub_name_is_the_surroundings_fault(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SurroundingsError, match="is not a file or folder here, and the Hugging Face hub cannot be reached"):
        open_hub(make_config(dataset="owner/data"))
