from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prolu_tune.activations.arrow_files import publish
from prolu_tune.activations.model_info import describe_model
from prolu_tune.activations.packing import TokenFile, write_rows
from prolu_tune.activations.rows import DataShards, TokenRows, open_rows, seeded_permutation
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError

Make = Callable[..., ActivationConfig]
CTX = 4


def shards_of(folder: Path, sizes: list[int], *, streamed: bool = True) -> tuple[DataShards, list[int]]:
    """Returns shards whose row r of shard s is [s, r, 0, 0], and the list of shards opened so far."""
    opened: list[int] = []

    def open_shard(shard: int) -> TokenFile:
        opened.append(shard)
        rows = np.zeros((sizes[shard], CTX), np.int32)
        rows[:, 0], rows[:, 1] = shard, np.arange(sizes[shard])
        path = publish(folder, f"s{shard}", lambda to: write_rows(to, [rows], context_length=CTX, dtype=np.dtype(np.int32)))
        return TokenFile(path, context_length=CTX)

    return DataShards("data", "id", len(sizes), open_shard, streamed=streamed), opened


def rows_of(folder: Path, sizes: list[int], **config: Any) -> TokenRows:
    return TokenRows(shards_of(folder, sizes)[0], ActivationConfig(context_length=CTX, **config))


def pairs(rows: np.ndarray) -> list[tuple[int, int]]:
    return [(int(row[0]), int(row[1])) for row in rows]


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 23), min_size=1, max_size=9),
    edges=st.lists(st.integers(0, 20), min_size=3, max_size=3, unique=True).map(sorted),
    seed=st.integers(-5, 5),
)
def test_train_and_eval_never_share_a_row_and_with_full_ranges_cover_all(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], edges: list[int], seed: int
) -> None:
    low, middle, high = (edge / 20 for edge in edges)
    rows = rows_of(tmp_path_factory.mktemp("s"), sizes, train_range=(low, middle), eval_range=(middle, high), seed=seed)
    seen: dict[str, list[tuple[int, int]]] = {}
    for part in ("train", "eval"):
        count, complete = rows.count(part)
        assert complete
        seen[part] = pairs(rows.take(part, epoch=0, start=0, count=count))
        assert len(set(seen[part])) == count
    assert not set(seen["train"]) & set(seen["eval"])
    expected = {
        (shard, row)
        for shard, size in enumerate(sizes)
        for row in range(size)
        if low * len(sizes) - 1e-9 <= shard + row / size < high * len(sizes) - 1e-9
    }
    union = set(seen["train"]) | set(seen["eval"])
    # A row that stands on an edge to within rounding may fall on either side of it.
    doubtful = {
        (shard, row)
        for shard, row in union ^ expected
        if min(abs(shard + row / sizes[shard] - edge * len(sizes)) for edge in (low, high)) < 1e-6
    }
    assert union ^ expected == doubtful


def test_any_stretch_is_the_same_stretch_of_the_whole_order(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [10, 7, 12, 9, 11, 8, 10], train_range=(0.1, 0.8), eval_range=(0.8, 1.0))
    count, _ = rows.count("train")
    for epoch in (0, 1):
        whole = rows.take("train", epoch=epoch, start=0, count=count)
        for start in (0, 3, 13, count - 1):
            part = rows.take("train", epoch=epoch, start=start, count=min(9, count - start))
            assert np.array_equal(part, whole[start : start + 9])
    first, second = (pairs(rows.take("train", epoch=epoch, start=0, count=count)) for epoch in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second


def test_the_order_depends_on_the_seed_alone(tmp_path: Path) -> None:
    def order(seed: int, folder: str) -> list[tuple[int, int]]:
        rows = rows_of(tmp_path / folder, [30], train_range=(0.0, 0.9), eval_range=(0.9, 1.0), seed=seed)
        return pairs(rows.take("train", epoch=0, start=0, count=27))

    assert order(1, "a") == order(1, "b")
    assert order(1, "a") != order(2, "c")
    assert order(1, "a") != sorted(order(1, "a"))


def test_shards_are_opened_a_group_at_a_time_and_rows_mix_over_the_group(tmp_path: Path) -> None:
    shards, opened = shards_of(tmp_path, [50] * 20)
    rows = TokenRows(shards, ActivationConfig(context_length=CTX, train_range=(0.0, 0.8), eval_range=(0.8, 1.0)))
    first = pairs(rows.take("train", epoch=0, start=0, count=40))
    assert len(set(opened)) == 4
    assert len({shard for shard, _ in first}) == 4
    assert rows.count("train", at_least=150) == (150, False)
    assert len(set(opened)) == 4
    assert max(opened) < 16


def test_asking_for_more_rows_than_there_are_is_refused_with_the_numbers(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [10], train_range=(0.0, 0.5), eval_range=(0.5, 1.0))
    with pytest.raises(InputError, match=r"train_range \[0\.0, 0\.5\] holds 5 rows of 4 tokens, but row 6 was asked for"):
        rows.take("train", epoch=0, start=3, count=4)


def test_a_permutation_is_a_known_function_of_its_key() -> None:
    assert seeded_permutation(8, 1, 2, 3).tolist() == seeded_permutation(8, 1, 2, 3).tolist()
    assert sorted(seeded_permutation(100, -1).tolist()) == list(range(100))
    keys = [(1, 2), (2, 1), (1, 2, 0), (-1, 2)]
    assert len({tuple(seeded_permutation(50, *key).tolist()) for key in keys}) == len(keys)


def test_text_is_tokenised_once_and_found_again(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    info = describe_model(config)
    told: list[tuple[int, int]] = []
    first = open_rows(config, info, cache_dir=tmp_path, progress=lambda done, total: told.append((done, total)))
    count, _ = first.count("train")
    rows = first.take("train", epoch=0, start=0, count=count)
    assert told[-1][0] == told[-1][1]
    assert (rows[:, 0] == 0).all()
    told.clear()
    again = open_rows(config, info, cache_dir=tmp_path, progress=lambda done, total: told.append((done, total)))
    assert np.array_equal(again.take("train", epoch=0, start=0, count=count), rows)
    assert told == []
    assert again.shards.identity == first.shards.identity


def test_another_context_bos_or_content_is_another_identity(make_config: Make, tmp_path: Path, text_file: Path) -> None:
    def identity(**changes: Any) -> str:
        config = make_config(**changes)
        return open_rows(config, describe_model(config), cache_dir=tmp_path).shards.identity

    copy = tmp_path / "elsewhere" / text_file.name
    copy.parent.mkdir()
    copy.write_bytes(text_file.read_bytes())
    assert identity() == identity(dataset=str(copy))
    copy.write_bytes(text_file.read_bytes() + b'{"text": "more"}\n')
    others = [identity(context_length=8), identity(overwrite_bos=False), identity(dataset=str(copy)), identity(column="text")]
    assert len({identity(), *others}) == 5


def test_a_damaged_token_file_is_made_again_and_said(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    info = describe_model(config)
    rows = open_rows(config, info, cache_dir=tmp_path).take("eval", epoch=0, start=0, count=5)
    (file,) = (tmp_path / "tokens").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:-9])
    said: list[str] = []
    again = open_rows(config, info, cache_dir=tmp_path, say=said.append)
    assert np.array_equal(again.take("eval", epoch=0, start=0, count=5), rows)
    assert len(said) == 1
    assert "damaged token cache file, made again" in said[0]


def test_a_model_without_tokenizer_reads_ids_with_its_own_bos_and_refuses_text(
    make_config: Make, llama_folder: Path, tmp_path: Path, text_file: Path
) -> None:
    data = tmp_path / "ids.parquet"
    pq.write_table(pa.table({"input_ids": [[7] * 32] * 10}), data)
    config = make_config(model=str(llama_folder), dataset=str(data))
    rows = open_rows(config, describe_model(config), cache_dir=tmp_path).take("train", epoch=0, start=0, count=2)
    assert rows.tolist() == [[1] + [7] * 15] * 2
    config = make_config(model=str(llama_folder), dataset=str(text_file))
    with pytest.raises(InputError, match=r"holds text, but .* has no tokenizer"):
        open_rows(config, describe_model(config), cache_dir=tmp_path).count("train")


@pytest.mark.parametrize("dataset", ["nowhere.parquet", "./nowhere", "/nowhere/data", "a/b/c"])
def test_a_data_set_that_is_nowhere_is_refused(make_config: Make, tmp_path: Path, dataset: str) -> None:
    config = make_config(dataset=dataset)
    with pytest.raises(InputError, match="is neither a file or folder here nor a name on the hub"):
        open_rows(config, describe_model(config), cache_dir=tmp_path)


def test_empty_text_is_refused(make_config: Make, tmp_path: Path) -> None:
    data = tmp_path / "empty.jsonl"
    data.write_text('{"text": ""}\n{"text": "a"}\n')
    config = make_config(dataset=str(data))
    with pytest.raises(InputError, match="holds no row of 16 tokens; give more data"):
        open_rows(config, describe_model(config), cache_dir=tmp_path).count("train")


def test_a_revision_of_local_data_is_refused(make_config: Make, tmp_path: Path) -> None:
    config = make_config(dataset_revision="main")
    with pytest.raises(InputError, match="dataset_revision has no effect"):
        open_rows(config, describe_model(config), cache_dir=tmp_path)
