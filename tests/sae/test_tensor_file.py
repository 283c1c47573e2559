import errno
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from prolu_tune.sae.tensor_file import (
    DamagedFileError,
    TensorSpec,
    content_digest,
    read_small_file,
    read_tensors,
    spec_of,
    write_tensors,
)

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor([1.5, -2.0], dtype=torch.float64),
    "c": torch.tensor(7, dtype=torch.int64),
}
SPECS = {name: spec_of(tensor) for name, tensor in TENSORS.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "t.safetensors", TENSORS, {"who": "me"})
    return tmp_path / "t.safetensors"


def test_what_is_written_is_read_back_here_and_by_the_safetensors_package(path):
    tensors, metadata = read_tensors(path, SPECS)
    theirs = safetensors.torch.load_file(path)
    assert metadata == {"who": "me"}
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert torch.equal(theirs[name], tensor)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_the_safetensors_package_writes_is_read(tmp_path):
    safetensors.torch.save_file({"a": TENSORS["a"], "c": TENSORS["c"]}, tmp_path / "x", {"k": "v"})
    tensors, metadata = read_tensors(tmp_path / "x", {"a": SPECS["a"], "c": SPECS["c"]})
    assert torch.equal(tensors["a"], TENSORS["a"])
    assert metadata == {"k": "v"}


@pytest.mark.parametrize(
    "expected",
    [
        {"a": SPECS["a"], "b": SPECS["b"]},
        {**SPECS, "d": SPECS["a"]},
        {**SPECS, "a": TensorSpec(torch.float32, (3, 2))},
        {**SPECS, "a": TensorSpec(torch.float64, (2, 3))},
    ],
)
def test_other_names_shapes_or_dtypes_are_refused(path, expected):
    with pytest.raises(DamagedFileError):
        read_tensors(path, expected)


def test_every_cut_is_refused(path):
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError):
            read_tensors(path, SPECS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        (2**63).to_bytes(8, "little") + b"{}",
        (2_000_000).to_bytes(8, "little") + b" " * 2_000_000,
        (900_000).to_bytes(8, "little") + b"[" * 900_000,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        (24).to_bytes(8, "little") + b'{"__metadata__":{"a":1}}',
        (4).to_bytes(8, "little") + b"\xff\xfe\x00\x01",
    ],
)
def test_hostile_headers_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(DamagedFileError):
        read_tensors(path, SPECS)


def test_a_shape_larger_than_the_file_is_refused_before_it_is_allocated(path):
    shape = [2**31 - 1, 2**31 - 1]
    size = 4 * shape[0] * shape[1]
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(100))
    with pytest.raises(DamagedFileError, match="100 bytes of data"):
        read_tensors(path, {"a": TensorSpec(torch.float32, tuple(shape))})


def test_overlapping_tensors_are_refused(path):
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    with pytest.raises(DamagedFileError, match="b is"):
        read_tensors(path, {"a": SPECS["a"], "b": SPECS["a"]})


def test_a_full_disk_leaves_the_earlier_file_and_no_temporary_one(path):
    before = path.read_bytes()
    path.with_name(path.name + ".tmp").symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        write_tensors(path, TENSORS, {})
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_digest_sees_names_shapes_dtypes_bytes_and_text():
    zeros = torch.zeros(2, 3)
    digests = {
        content_digest({"a": zeros}),
        content_digest({"b": zeros}),
        content_digest({"a": zeros.T.contiguous()}),
        content_digest({"a": torch.zeros(3, dtype=torch.float64)}),
        content_digest({"a": zeros + 1}),
        content_digest({"a": zeros}, "text"),
    }
    assert len(digests) == 6
    assert content_digest({"a": zeros, "b": zeros}) == content_digest({"b": zeros, "a": zeros.clone()})


def test_only_regular_files_of_limited_size_are_read(path, tmp_path):
    with pytest.raises(DamagedFileError, match="larger than 10 bytes"):
        read_small_file(path, max_bytes=10)
    with pytest.raises(DamagedFileError, match="not a regular file"):
        read_small_file(tmp_path, max_bytes=10)
    with pytest.raises(DamagedFileError, match="not a regular file"):
        read_tensors(Path("/dev/zero"), SPECS)
