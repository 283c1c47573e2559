import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from prolu_tune.activations.arrow_files import DamagedFileError
from prolu_tune.activations.cache import ChunkStore, chunk_name, open_chunk, open_or_remake
from prolu_tune.errors import InputError, SurroundingsError


def chunk(value: int, *, tokens: int = 64, d_in: int = 8) -> np.ndarray:
    return np.full((tokens, d_in), value, np.float16)


def store_of(tmp_path: Path) -> ChunkStore:
    return ChunkStore(tmp_path, "f" * 64, max_bytes=1_000_000)


def test_a_chunk_is_made_once_however_many_ask_at_the_same_time(tmp_path: Path) -> None:
    store, made = store_of(tmp_path), []

    def produce() -> np.ndarray:
        made.append(threading.get_ident())
        time.sleep(0.05)
        return chunk(7)

    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(store.ensure(chunk_name(3), produce))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(set(paths)) == 1
    assert np.array_equal(open_chunk(paths[0], tokens=64, d_in=8), chunk(7))


def test_the_oldest_chunks_go_first_across_fingerprints_and_the_newest_stays(tmp_path: Path) -> None:
    size = store_of(tmp_path / "measured").ensure("x", lambda: chunk(0)).stat().st_size
    old, new = (ChunkStore(tmp_path / "chunks", letter * 64, max_bytes=int(3.5 * size)) for letter in "ab")
    for index in range(3):
        path = old.ensure(chunk_name(index), lambda value=index: chunk(value))
        os.utime(path, ns=(index, index))
    new.ensure(chunk_name(0), lambda: chunk(9))
    assert [old.find(chunk_name(index)) is not None for index in range(3)] == [False, True, True]
    assert new.find(chunk_name(0)) is not None
    tiny = ChunkStore(tmp_path / "chunks", "c" * 64, max_bytes=1)
    assert tiny.ensure(chunk_name(0), lambda: chunk(1)).exists()
    assert len(list((tmp_path / "chunks").glob("*/*.arrow"))) == 1


def test_an_evicted_chunk_stays_readable_where_it_is_open(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    path = store.ensure(chunk_name(0), lambda: chunk(5))
    array = open_chunk(path, tokens=64, d_in=8)
    path.unlink()
    assert np.array_equal(array, chunk(5))


def test_a_damaged_chunk_is_made_again_and_said(tmp_path: Path) -> None:
    store, said, made = store_of(tmp_path), [], []

    def ensure() -> Path:
        return store.ensure(chunk_name(0), lambda: made.append(1) or chunk(5))

    path = ensure()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert np.array_equal(open_or_remake(ensure, tokens=64, d_in=8, say=said.append), chunk(5))
    assert len(made) == 2
    assert len(said) == 1
    assert "damaged activation cache file, computed again" in said[0]


def test_a_chunk_evicted_before_it_was_opened_is_made_again(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    lost = store.folder / "lost.arrow"
    answers = iter([lost, lost])
    array = open_or_remake(lambda: next(answers, None) or store.ensure(chunk_name(0), lambda: chunk(5)), tokens=64, d_in=8)
    assert np.array_equal(array, chunk(5))


def test_a_chunk_lost_time_and_again_is_given_up_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(SurroundingsError, match=r"lost or damaged 5 times .* raise activations\.cache_gb"):
        open_or_remake(lambda: tmp_path / "never.arrow", tokens=64, d_in=8)


@pytest.mark.parametrize("wrong", [chunk(1, tokens=63), chunk(1, d_in=9), chunk(1).astype(np.float32)])
def test_a_sound_file_of_another_shape_is_damaged(tmp_path: Path, wrong: np.ndarray) -> None:
    path = store_of(tmp_path).ensure(chunk_name(0), lambda: wrong)
    with pytest.raises(DamagedFileError, match="does not hold 64 float16 activations 8 wide"):
        open_chunk(path, tokens=64, d_in=8)


def test_a_cache_too_small_for_two_chunks_is_refused_with_the_number(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, "f" * 64, max_bytes=1_000_000_000)
    store.check_size(500_000_000)
    with pytest.raises(InputError, match=r"cache_gb \(1\) must hold at least two chunks of 0\.6 GB; raise it to 1\.21"):
        store.check_size(600_000_000)


def test_an_error_while_making_a_chunk_is_handed_on_as_it_is(tmp_path: Path) -> None:
    def fail() -> np.ndarray:
        raise InputError("the data end here")

    store = store_of(tmp_path)
    with pytest.raises(InputError, match="the data end here"):
        store.ensure(chunk_name(0), fail)
    assert np.array_equal(open_chunk(store.ensure(chunk_name(0), lambda: chunk(2)), tokens=64, d_in=8), chunk(2))
