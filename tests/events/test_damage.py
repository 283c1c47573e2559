"""Files cut at every byte and with every bit flipped: what is read is what was written, or older and said, or refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from events import operations as op
from prolu_tune.activations.arrow_files import DamagedFileError
from prolu_tune.activations.cache import chunk_name, open_chunk
from prolu_tune.activations.digests import read_json, store_json
from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.sae.folder import read_sae_config
from prolu_tune.sweep.files import read_stored
from prolu_tune.sweep.journal import SweepJournal

SMALL = (3, 2)


@pytest.fixture(params=[61, pytest.param(1, marks=pytest.mark.slow)])
def every(request: pytest.FixtureRequest) -> int:
    """Of how many damages one is done: all in the slow form."""
    return request.param


def damaged(whole, every) -> Iterator[tuple[bytes, bool]]:
    """Yields (content, whether it was cut) for every cut and every flipped bit, or every so many."""
    for length in range(0, len(whole), -(-every // 8)):
        yield whole[:length], True
    for place in range(0, 8 * len(whole), every):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        yield bytes(content), False


def test_a_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path: Path, every: int) -> None:
    for step in (1, 2):
        path = op.save_checkpoint(tmp_path, op.checkpoint(step, SMALL))
    whole, fallbacks, count = path.read_bytes(), 0, 0
    for content, _ in damaged(whole, every):
        path.write_bytes(content)
        found, notes = op.load_newest(tmp_path, op.specs(SMALL))
        assert found is not None and op.same_checkpoint(found, op.checkpoint(found.step, SMALL))
        # A flip in the padding of the header, or in the case of an escape, changes nothing that is read.
        assert (found.step == 1) == bool(notes)
        fallbacks, count = fallbacks + bool(notes), count + 1
        path.with_name(path.name + ".damaged").unlink(missing_ok=True)
    assert fallbacks > 0.97 * count


@pytest.mark.parametrize("name", ["sae.safetensors", "config.json"])
def test_an_autoencoders_folder_is_refused_or_the_same(name: str, tmp_path: Path, every: int) -> None:
    op.save(tmp_path, 0)
    config = read_sae_config(tmp_path / "sae")
    path = tmp_path / "sae" / name
    whole, refused, count = path.read_bytes(), 0, 0
    for content, _ in damaged(whole, every):
        path.write_bytes(content)
        count += 1
        try:
            assert op.sae_seed(tmp_path) == 0
        except InputError:
            refused += 1
        else:
            assert read_sae_config(tmp_path / "sae") == config
    assert refused > 0.8 * count


def test_a_chunk_is_refused(tmp_path: Path, every: int) -> None:
    path = op.store(tmp_path).ensure(chunk_name(0), lambda: op.activations(0))
    whole = path.read_bytes()
    for content, _ in damaged(whole, every):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError):
            open_chunk(path, tokens=op.TOKENS, d_in=op.D_IN)


def test_a_journal_loses_its_last_record_and_says_so_or_is_refused(tmp_path: Path, every: int) -> None:
    op.JOURNAL.prepare(tmp_path)
    path = tmp_path / "sweep" / "study.journal"
    whole = path.read_bytes()
    records = list(SweepJournal(path).read_logs(0))
    last = len(whole.splitlines(keepends=True)[-1])
    refused = 0
    for content, cut in damaged(whole, every):
        path.write_bytes(content)
        try:
            journal = SweepJournal(path)
        except SurroundingsError as error:
            assert not cut and "is damaged at byte" in str(error)
            refused += 1
            continue
        read = list(journal.read_logs(0))
        assert read == records[: len(read)]
        if not cut:
            # A flip of the line's end before the last joins two records, and both are set aside.
            assert journal.torn_bytes >= last
            assert len(records) - 2 <= len(read) < len(records)
        assert path.stat().st_size + journal.torn_bytes == len(content)
        if journal.torn_bytes:
            assert path.with_name("study.journal.torn").read_bytes() == content[-journal.torn_bytes :]
    assert refused > 20


def test_rows_of_metrics_lose_a_torn_last_one_or_are_refused(tmp_path: Path, every: int) -> None:
    op.append_rows(tmp_path, 10, 20, 30)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    rows = [op.row(step) for step in (10, 20, 30)]
    for content, cut in damaged(whole, every):
        path.write_bytes(content)
        try:
            read = op.rows_file(tmp_path).rows
        except SurroundingsError:
            assert not cut
            continue
        assert read == rows[: len(read)]
        assert cut or len(read) == 2  # the last line's end was flipped: the row is gone, and missed when training ends


def test_small_files_are_refused_or_worked_out_again(tmp_path: Path, every: int) -> None:
    op.store_small(tmp_path, 1)
    store_json(tmp_path / "memo.json", {"sha256": "0" * 64})
    for path in (tmp_path / "trained.json", tmp_path / "memo.json"):
        for content, _ in damaged(path.read_bytes(), every):
            path.write_bytes(content)
            assert read_json(path) is None
            with pytest.raises(SurroundingsError, match="is damaged"):
                read_stored(path)
