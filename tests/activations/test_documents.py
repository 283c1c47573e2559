import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prolu_tune.activations.documents import DOCUMENTS_PER_PIECE, local_files, read_files
from prolu_tune.errors import InputError, SurroundingsError


def documents(file: Path, column: str | None = None) -> list[Any]:
    return [value for piece in read_files([file], column=column, progress=None) for value in piece.column.to_pylist()]


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_json_lines_and_their_compressed_forms_give_the_same_documents(tmp_path: Path) -> None:
    texts = [f"text {i} äß" for i in range(DOCUMENTS_PER_PIECE + 3)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.jsonl.zst").write_bytes(pa.compress(lines.encode(), codec="zstd", asbytes=True))
    files = [
        parquet(tmp_path / "d.parquet", text=texts),
        *(tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst")),
    ]
    assert all(documents(file) == texts for file in files)


def test_a_text_file_is_one_document_in_pieces_that_end_at_a_line(tmp_path: Path) -> None:
    text = "".join(f"line {i}, which is not short at all\n" for i in range(60_000))
    file = tmp_path / "book.txt"
    file.write_text(text)
    pieces = list(read_files([file], column=None, progress=None))
    assert len(pieces) > 1
    assert "".join(piece.column[0].as_py() for piece in pieces) == text
    assert [piece.continued for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert all(piece.column[0].as_py().endswith("\n") for piece in pieces[:-1])


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        parquet(tmp_path / f"{name}.parquet", text=[name])
    (tmp_path / "README.md").write_text("not data")
    files = local_files(str(tmp_path))
    assert [file.name for file in files] == ["a.parquet", "b.parquet", "c.parquet"]


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    files = [parquet(tmp_path / "a.parquet", text=["x"] * 2000), tmp_path / "b.txt"]
    files[1].write_text("some text")
    told: list[tuple[int, int]] = []
    for _ in read_files(files, column=None, progress=lambda done, total: told.append((done, total))):
        pass
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == sum(file.stat().st_size for file in files)


def test_token_columns_come_before_text_unless_a_column_is_named(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", text=["x"], input_ids=[[1, 2]], tokens=[[3]])
    assert documents(file) == [[1, 2]]
    assert documents(file, "tokens") == [[3]]
    assert documents(file, "text") == ["x"]


def test_nulls_are_left_out(tmp_path: Path) -> None:
    assert documents(parquet(tmp_path / "a.parquet", text=["x", None, "y"])) == ["x", "y"]


def test_a_missing_column_lists_those_there_are(tmp_path: Path) -> None:
    file = parquet(tmp_path / "a.parquet", body=["x"], title=["y"])
    with pytest.raises(
        InputError, match=r"no column input_ids or tokens or text; its columns are: body, title; set activations\.column"
    ):
        documents(file)
    with pytest.raises(InputError, match="no column texts; its columns are: body, title"):
        documents(file, "texts")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\nnot json\n', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", b"[1, 2]\n", r"a\.jsonl:1 is not a JSON object"),
        ("a.jsonl", b'{"text": 3}\n', "column text holds int64, neither text nor lists"),
        ("a.jsonl", b'{"text": "x"}\n{"text": [1]}\n', "values of different kinds"),
        ("a.jsonl", b"[" * 100_000 + b"\n", r"a\.jsonl:1 is not JSON"),
        ("a.txt", b"text \xff\xfe\x00 binary", "is not UTF-8 text"),
        ("a.parquet", b"PAR1 but not more", "is not a sound Parquet file"),
        ("a.jsonl.gz", b"not compressed", "cannot be read"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises((InputError, SurroundingsError), match=message):
        documents(file)


def test_empty_unknown_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InputError, match=r"a\.txt is empty"):
        local_files(str(tmp_path / "a.txt"))
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(InputError, match=r"neither \.parquet, \.jsonl"):
        local_files(str(tmp_path / "a.csv"))
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputError, match=r"holds no \.parquet"):
        local_files(str(tmp_path / "sub"))


def test_a_column_named_for_plain_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="plain text without columns"):
        documents(tmp_path / "a.txt", "body")
