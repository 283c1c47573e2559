from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from prolu_tune.activations.arrow_files import DamagedFileError, publish
from prolu_tune.activations.documents import Piece
from prolu_tune.activations.model_info import describe_model, load_tokenizer
from prolu_tune.activations.packing import ROWS_PER_BATCH, Packer, TokenFile, write_rows
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError


@pytest.fixture(scope="module")
def tokenizer(gpt2_folder: Path) -> object:
    return load_tokenizer(describe_model(ActivationConfig(model=str(gpt2_folder), context_length=16)))


def packer(tokenizer: object = None, *, ctx: int = 8, bos: int | None = 0, vocab: int = 300) -> Packer:
    return Packer(context_length=ctx, vocab_size=vocab, tokenizer=tokenizer, bos_token_id=bos, separator_id=0, model="tiny")


def all_rows(packer: Packer, pieces: list[Piece]) -> np.ndarray:
    return np.concatenate([np.empty((0, packer.context_length), packer.dtype), *packer.rows(pieces, where="data")])


def test_text_is_packed_without_losing_a_token_and_with_a_separator_between_documents(tokenizer: object) -> None:
    texts = ["the sparse gate of a model", "", "token", "and the latent norm, and the bias"]
    ids: list[int] = []
    for text in texts:
        encoded = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]  # a transformers tokenizer
        ids += [*encoded, 0] if encoded else []
    whole = len(ids) // 8 * 8
    pieces = [Piece(pa.array(texts[:2])), Piece(pa.array(texts[2:]))]
    assert all_rows(packer(tokenizer, bos=None), pieces).flatten().tolist() == ids[:whole]
    with_bos = all_rows(packer(tokenizer, bos=5), pieces)
    assert (with_bos[:, 0] == 5).all()
    assert with_bos[:, 1:].tolist() == np.array(ids[:whole]).reshape(-1, 8)[:, 1:].tolist()


def test_a_document_in_several_pieces_has_no_separator_inside(tokenizer: object) -> None:
    whole = all_rows(packer(tokenizer, bos=None), [Piece(pa.array(["the model\nand the bias\nof the norm and the latent"]))])
    parts = [Piece(pa.array(["the model\n"]), continued=True), Piece(pa.array(["and the bias\nof the norm and the latent"]))]
    assert all_rows(packer(tokenizer, bos=None), parts).tolist() == whole.tolist()


def test_a_huge_document_is_tokenised_in_parts(tokenizer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"word{i} the model" for i in range(400))
    whole = all_rows(packer(tokenizer, bos=None), [Piece(pa.array([text]))])
    monkeypatch.setattr("prolu_tune.activations.packing.PIECE_CHARACTERS", 100)
    assert all_rows(packer(tokenizer, bos=None), [Piece(pa.array([text]))]).tolist() == whole.tolist()


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.list_(pa.int64(), 20)])
def test_token_lists_are_cut_one_by_one(kind: pa.DataType) -> None:
    lists = [list(range(20)), list(range(100, 120))]
    expected = [list(range(8)), list(range(8, 16)), list(range(100, 108)), list(range(108, 116))]
    assert all_rows(packer(bos=None), [Piece(pa.array(lists, kind))]).tolist() == expected


def test_token_lists_of_different_lengths_keep_their_whole_pieces() -> None:
    lists = [[1] * 7, [2] * 17, [], [3] * 8]
    assert all_rows(packer(bos=None), [Piece(pa.array(lists, pa.list_(pa.int64())))])[:, 0].tolist() == [2, 2, 3]


def test_writing_bos_does_not_reach_the_arrow_data() -> None:
    column = pa.array([[9] * 8], pa.list_(pa.uint16()))
    assert all_rows(packer(bos=4), [Piece(column)])[0].tolist() == [4] + [9] * 7
    assert column.to_pylist() == [[9] * 8]


def test_ids_beyond_the_vocabulary_are_refused() -> None:
    for wrong in (300, -1):
        with pytest.raises(InputError, match=rf"token id {wrong}, but tiny knows ids 0 to 299"):
            all_rows(packer(), [Piece(pa.array([[1] * 7 + [wrong]]))])


def test_rows_all_shorter_than_the_context_are_refused_with_their_length() -> None:
    with pytest.raises(InputError, match=r"longest row holds 7 tokens, fewer than activations.context_length 8; lower it to 7"):
        all_rows(packer(), [Piece(pa.array([[1] * 7, [1] * 3]))])


def test_text_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match="holds text, but tiny has no tokenizer"):
        all_rows(packer(), [Piece(pa.array(["text"]))])


@pytest.mark.parametrize(("vocab", "dtype"), [(65_536, np.uint16), (65_537, np.int32)])
def test_rows_written_block_by_block_are_read_back_by_index(tmp_path: Path, vocab: int, dtype: type) -> None:
    made = packer(vocab=vocab)
    assert made.dtype == dtype
    count = 2 * ROWS_PER_BATCH + 5
    rows = (np.arange(count * 8).reshape(count, 8) % vocab).astype(dtype)
    blocks = [rows[:10], rows[10:ROWS_PER_BATCH], rows[ROWS_PER_BATCH:]]
    path = publish(tmp_path, "t", lambda target: write_rows(target, blocks, context_length=8, dtype=made.dtype))
    file = TokenFile(path, context_length=8)
    assert file.num_rows == count
    chosen = np.array([count - 1, 0, ROWS_PER_BATCH, ROWS_PER_BATCH - 1, 3, 3])
    assert np.array_equal(file.rows(chosen), rows[chosen])
    with pytest.raises(DamagedFileError):
        TokenFile(path, context_length=4)
