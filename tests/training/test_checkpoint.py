import random
from pathlib import Path

import pytest
import torch

from prolu_tune.errors import SurroundingsError
from prolu_tune.sae.tensor_file import content_digest, spec_of, write_tensors
from prolu_tune.training.checkpoint import Checkpoint, load_newest, save_checkpoint

SPECS = {"w": spec_of(torch.zeros(5, 3)), "n": spec_of(torch.zeros(2, dtype=torch.int64))}


def _checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {"w": torch.randn(5, 3, generator=generator), "n": torch.tensor([step, 2])}
    return Checkpoint(step, tensors, {"step": step, "notes": ["ä"], "wall_s": 0.1})


def _same(a: Checkpoint | None, b: Checkpoint) -> bool:
    return a is not None and a[::2] == b[::2] and all(torch.equal(a.tensors[name], b.tensors[name]) for name in b.tensors)


def test_no_folder_and_an_empty_one_hold_no_checkpoint(tmp_path):
    assert load_newest(tmp_path / "none", SPECS) == (None, ())
    assert load_newest(tmp_path, SPECS) == (None, ())


def test_the_newest_comes_back_and_the_last_two_are_kept(tmp_path):
    for step in (3, 20, 100):
        save_checkpoint(tmp_path / "c", _checkpoint(step))
    loaded, warnings = load_newest(tmp_path / "c", SPECS)
    assert _same(loaded, _checkpoint(100))
    assert warnings == ()
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "checkpoint-0000000020.safetensors",
        "checkpoint-0000000100.safetensors",
    ]


def test_any_flipped_byte_and_any_cut_falls_back_to_the_one_before_and_says_so(tmp_path):
    save_checkpoint(tmp_path, _checkpoint(1))
    newest = save_checkpoint(tmp_path, _checkpoint(2))
    whole = newest.read_bytes()
    draw = random.Random(0)
    contents = [whole[:n] for n in range(0, len(whole), 5)]
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << draw.randrange(8)
        contents.append(bytes(flipped))
    fallbacks = 0
    for content in contents:
        newest.write_bytes(content)
        loaded, warnings = load_newest(tmp_path, SPECS)
        if warnings:
            assert _same(loaded, _checkpoint(1))
            assert "damaged checkpoint was set aside" in warnings[0]
            assert not newest.exists()
            fallbacks += 1
        else:
            # Padding of the header, or the case of a hexadecimal escape: nothing that is read differs.
            assert _same(loaded, _checkpoint(2))
    assert fallbacks > 0.97 * len(contents)


def test_with_both_damaged_training_starts_afresh_with_two_warnings(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, _checkpoint(step)).write_bytes(b"x")
    loaded, warnings = load_newest(tmp_path, SPECS)
    assert loaded is None
    assert len(warnings) == 2


def test_a_temporary_file_left_by_a_kill_is_no_checkpoint(tmp_path):
    path = save_checkpoint(tmp_path, _checkpoint(1))
    (tmp_path / "checkpoint-0000000002.safetensors.tmp").write_bytes(path.read_bytes()[:50])
    assert _same(load_newest(tmp_path, SPECS)[0], _checkpoint(1))
    save_checkpoint(tmp_path, _checkpoint(2))
    assert _same(load_newest(tmp_path, SPECS)[0], _checkpoint(2))


def test_a_full_disk_is_the_surroundings_fault_and_leaves_earlier_checkpoints(tmp_path):
    save_checkpoint(tmp_path, _checkpoint(1))
    (tmp_path / "checkpoint-0000000002.safetensors.tmp").symlink_to("/dev/full")
    with pytest.raises(SurroundingsError, match="No space left on device; earlier checkpoints are intact"):
        save_checkpoint(tmp_path, _checkpoint(2))
    assert _same(load_newest(tmp_path, SPECS)[0], _checkpoint(1))


def test_a_whole_checkpoint_of_another_format_is_not_thrown_away(tmp_path: Path):
    tensors = _checkpoint(1).tensors
    metadata = {
        "format": "prolu-tune checkpoint 2",
        "state": "{}",
        "sha256": content_digest(tensors, "prolu-tune checkpoint 2{}"),
    }
    path = tmp_path / "checkpoint-0000000001.safetensors"
    write_tensors(path, tensors, metadata)
    with pytest.raises(SurroundingsError, match="this version reads 'prolu-tune checkpoint 1'"):
        load_newest(tmp_path, SPECS)
    assert path.exists()
