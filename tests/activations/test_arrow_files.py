import errno
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from prolu_tune.activations.arrow_files import (
    DamagedFileError,
    exclusive,
    find,
    fixed_rows,
    open_mapped,
    publish,
)
from prolu_tune.errors import InputError, SurroundingsError


def write(path: Path, *arrays: np.ndarray) -> None:
    batches = [fixed_rows(array, name="x") for array in arrays]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def numbers(rows: int, width: int, dtype: str = "float16") -> np.ndarray:
    return np.arange(rows * width).reshape(rows, width).astype(dtype)


def test_what_was_published_is_what_is_opened_and_any_arrow_reader_reads_it(tmp_path: Path) -> None:
    first, second = numbers(5, 3, "uint16"), numbers(2, 3, "uint16") + 100
    path = publish(tmp_path, "name", lambda target: write(target, first, second))
    assert path == find(tmp_path, "name")
    _, arrays = open_mapped(path)
    assert [np.array_equal(a, b) for a, b in zip(arrays, (first, second), strict=True)] == [True, True]
    with pa.memory_map(str(path)) as file:
        assert pa.ipc.open_file(file).read_all().column("x").to_pylist() == [*first.tolist(), *second.tolist()]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_opened_array_lies_in_the_file_map_and_writing_to_it_does_not_reach_the_file(tmp_path: Path) -> None:
    path = publish(tmp_path, "name", lambda target: write(target, numbers(4, 2)))
    before = path.read_bytes()
    _, (array,) = open_mapped(path)
    assert not array.flags.owndata
    array[0, 0] = 77
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", ["float16", "uint16", "int32"])
def test_a_file_with_any_byte_changed_or_cut_anywhere_is_damaged(tmp_path: Path, dtype: str) -> None:
    path = publish(tmp_path, "name", lambda target: write(target, numbers(3, 4, dtype)))
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        for broken in (whole[:position], whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]):
            path.unlink()
            path.write_bytes(broken)
            with pytest.raises(DamagedFileError):
                open_mapped(path)


def test_a_file_with_the_right_checksum_but_another_content_is_damaged(tmp_path: Path) -> None:
    for content in (b"", b"not arrow at all", b"ARROW1\0\0" + bytes(64) + b"ARROW1"):
        path = publish(tmp_path, f"n{len(content)}", lambda target, data=content: target.write_bytes(data) and None)
        with pytest.raises(DamagedFileError):
            open_mapped(path)
    table = pa.record_batch({"x": pa.array(["text"])})

    def strings(target: Path) -> None:
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_batch(table)

    with pytest.raises(DamagedFileError):
        open_mapped(publish(tmp_path, "strings", strings))


def test_a_full_disk_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    def fill(target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SurroundingsError, match=r"is full .* free some space or lower activations\.cache_gb"):
        publish(tmp_path, "name", fill)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((InputError, SurroundingsError), match="cannot write the activation cache"):
        publish(tmp_path / "file" / "folder", "name", lambda target: write(target, numbers(1, 1)))


def test_what_a_killed_producer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "name.99999.tmp").write_bytes(b"half")
    with exclusive(tmp_path):
        assert not list(tmp_path.glob("*.tmp"))


def _hold(folder: Path, log: Path) -> None:
    for _ in range(20):
        with exclusive(folder):
            entry = {"pid": os.getpid()}
            with log.open("a") as out:
                out.write(json.dumps({"in": entry}) + "\n")
            with log.open("a") as out:
                out.write(json.dumps({"out": entry}) + "\n")


def test_two_processes_are_never_inside_together(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_hold, args=(tmp_path / "folder", log)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 80
    assert all(a["in"] == b["out"] for a, b in zip(lines[::2], lines[1::2], strict=True))
