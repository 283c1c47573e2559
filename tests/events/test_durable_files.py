"""Lines and files that survive: what is cut back, what is found again, what is told."""

import os
from pathlib import Path

import pytest

from events import operations as op
from events.file_layer import Fault, FileEvents
from prolu_tune.durable import DamagedLineError, extend_file, make_folder, sealed, unsealed
from prolu_tune.errors import SurroundingsError


@pytest.mark.parametrize("record", [{"a": 1}, {"a": [0.1, None, "ä\n"], "crc32": "x"}, {"": {}}])
def test_a_sealed_line_is_one_line_of_json_and_comes_back(record: dict) -> None:
    line = sealed(record)
    assert line.count(b"\n") == 1
    assert unsealed(line) == record


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"{}\n", b'{"a":1}\n', sealed({"a": 1})[:-1], sealed({"a": 1}) * 2, b"x" * 30 + b"\n"]
)
def test_a_line_that_is_not_sealed_is_damaged(line: bytes) -> None:
    with pytest.raises(DamagedLineError):
        unsealed(line)


def test_extending_a_file_cuts_off_what_a_failed_attempt_left(tmp_path: Path) -> None:
    path = tmp_path / "a"
    extend_file(path, b"one", at=0)
    with path.open("ab") as file:
        file.write(b"fragm")
    extend_file(path, b"two", at=3)
    assert path.read_bytes() == b"onetwo"
    with pytest.raises(OSError, match="holds 6 bytes of the 9"):
        extend_file(path, b"x", at=9)


def test_an_append_whose_fsync_failed_is_not_there_and_the_next_one_is(tmp_path: Path) -> None:
    path = tmp_path / "a"
    extend_file(path, b"one", at=0)
    with FileEvents(tmp_path, Fault(1, "EIO")).installed() as layer, pytest.raises(OSError, match="Input/output"):
        extend_file(path, b"two", at=3)
    assert [event for event, _ in layer.events] == ["write", "fsync", "truncate"]
    assert path.read_bytes() == b"one"
    extend_file(path, b"three", at=3)
    assert path.read_bytes() == b"onethree"


def test_folders_that_gained_an_entry_are_synced(tmp_path: Path) -> None:
    with FileEvents(tmp_path).installed() as layer:
        make_folder(tmp_path / "a" / "b")
        make_folder(tmp_path / "a" / "b")
    synced = [os.path.relpath(path, tmp_path) for event, path in layer.events if event == "fsync"]
    assert set(synced) == {".", "a"}


def test_between_two_renames_the_autoencoder_before_is_read_and_that_is_said(tmp_path: Path) -> None:
    op.save(tmp_path, 0)
    (tmp_path / "sae").rename(tmp_path / "sae.old")
    with pytest.warns(UserWarning, match="about to be replaced"):
        assert op.load_sae_folder(tmp_path / "sae").d_in == 5
    op.save(tmp_path, 1)
    assert op.sae_seed(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_what_kills_left_of_checkpoints_is_removed_when_a_training_goes_on(tmp_path: Path) -> None:
    op.save_checkpoint(tmp_path, op.checkpoint(1))
    (tmp_path / "checkpoint-0000000002.safetensors.tmp").write_bytes(b"half")
    assert op.load_newest(tmp_path, op.specs())[1] == ()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-0000000001.safetensors"]


def test_a_row_that_is_no_row_is_refused_with_the_remedy(tmp_path: Path) -> None:
    for nonsense in ({"loss": 1.0}, {"step": "3"}, {"step": True}, {"step": 1, "loss": [1]}):
        (tmp_path / "metrics.jsonl").write_bytes(sealed(op.row(10)) + sealed(nonsense))
        with pytest.raises(SurroundingsError, match="the trial starts afresh"):
            op.rows_file(tmp_path)
