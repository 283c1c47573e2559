import json
from pathlib import Path

import pytest

from prolu_tune.sweep import attempts
from prolu_tune.sweep.attempts import NOTE, Attempt, memory_kills, note_lack_of_memory, out_of_memory, peak_memory


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the kernel is said to have counted; its last element counts."""
    counted = [3]
    monkeypatch.setattr(attempts, "memory_kills", lambda: counted[-1])
    return counted


def _killed(folder: Path, driver: str = "d") -> None:
    """A process that never came to its end."""
    Attempt(folder, driver=driver).__enter__()._done.set()


def test_a_first_attempt_and_one_after_a_clean_end_know_of_no_lack(tmp_path: Path, kills: list[int]) -> None:
    for _ in range(2):
        with Attempt(tmp_path, driver="d") as attempt:
            assert attempt.lack_of_memory is None
        assert not (tmp_path / NOTE).exists()
        kills.append(9)


def test_a_process_lost_while_the_kernel_killed_for_memory_is_told_with_what_it_used(tmp_path: Path, kills: list[int]) -> None:
    _killed(tmp_path)
    kills.append(4)
    told = Attempt(tmp_path, driver="d").lack_of_memory
    assert told is not None
    assert f"{json.loads((tmp_path / NOTE).read_text())['bytes'] / 1e9:.2f} GB" in told
    assert "resources.max_concurrent_trials" in told and "--retry-failed" in told


@pytest.mark.parametrize(("driver", "after"), [("d", 3), ("another", 4)])
def test_a_process_lost_otherwise_or_along_with_its_driver_is_tried_again(
    driver: str, after: int, tmp_path: Path, kills: list[int]
) -> None:
    _killed(tmp_path)
    kills.append(after)
    assert Attempt(tmp_path, driver=driver).lack_of_memory is None


def test_what_rays_monitor_ended_is_told_once(tmp_path: Path, kills: list[int]) -> None:
    _killed(tmp_path)
    note_lack_of_memory(tmp_path)
    assert Attempt(tmp_path, driver="d").lack_of_memory is not None
    assert Attempt(tmp_path, driver="d").lack_of_memory is None
    note_lack_of_memory(tmp_path / "missing")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"driver": "d", "host": 1, "kills": "x"}'])
def test_a_damaged_note_is_none(content: bytes, tmp_path: Path, kills: list[int]) -> None:
    (tmp_path / NOTE).write_bytes(content)
    assert Attempt(tmp_path, driver="d").lack_of_memory is None


def test_errors_of_lacking_memory_name_what_was_asked_for_and_the_setting() -> None:
    import torch

    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**58)
    told = out_of_memory(refused.value)
    assert told is not None and "bytes" in told and "training.batch_size" in told
    cuda = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79 GiB")
    told = out_of_memory(cuda)
    assert told is not None and "20.00 GiB" in told and "resources.gpus_per_trial" in told
    assert out_of_memory(ValueError("out of memory of what was said")) is None


def test_the_peak_is_that_of_this_process() -> None:
    assert 10_000_000 < peak_memory() < 100_000_000_000
    assert memory_kills() is None or memory_kills() >= 0
