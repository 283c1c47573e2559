"""Documents out of local files and hub shards: Arrow columns of text or of token ids, read piece by piece."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from prolu_tune.errors import InputError, SurroundingsError

COLUMNS = ("input_ids", "tokens", "text")
"""Looked for in this order when no column is named."""
DOCUMENTS_PER_PIECE = 512
TEXT_PIECE = 1 << 20
"""Characters of a plain text file handled at a time, cut at the end of a line."""
COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")

Progress = Callable[[int, int], None]
"""Told what is done and what there is in all, in bytes."""


@dataclass(frozen=True)
class Piece:
    """A few documents: an Arrow array of strings or of lists of integers."""

    column: pa.Array
    continued: bool = False
    """The last document goes on in the next piece."""

    @property
    def is_text(self) -> bool:
        """Whether the documents are text; else they are token ids."""
        return types.is_string(self.column.type) or types.is_large_string(self.column.type)


def local_files(dataset: str) -> list[Path]:
    """Returns the data files that a path stands for, in the order they are read.

    Raises:
        InputError: if there are none of a kind that can be read.
    """
    path = Path(dataset).expanduser()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _kind(file) and file.is_file())
    if not files:
        raise InputError(
            f"activations.dataset {dataset} holds no .parquet, .jsonl, .json or .txt files; give the folder that does"
        )
    for file in files:
        if not _kind(file):
            raise InputError(
                f"activations.dataset {file} is neither .parquet, .jsonl, .json nor .txt (text kinds may be .gz or .zst); "
                "rename or convert it"
            )
        if file.stat().st_size == 0:
            raise InputError(f"activations.dataset: {file} is empty; remove it or give another file")
    return files


def read_files(files: list[Path], *, column: str | None, progress: Progress | None) -> Iterator[Piece]:
    """Yields the documents of files in order, as much at a time as fits easily in memory.

    Raises:
        InputError: if a file is not what its name says or does not have the column.
    """
    total = sum(file.stat().st_size for file in files)
    done = 0
    for file in files:
        size = file.stat().st_size
        reader = _READERS[_kind(file) or "text"]
        for piece, share in reader(file, column):
            yield piece
            if progress is not None:
                progress(done + int(share * size), total)
        done += size


def choose_column(names: list[str], *, column: str | None, where: str) -> str:
    """Returns the column with the documents.

    Raises:
        InputError: if there is none; lists those there are.
    """
    wanted = (column,) if column is not None else COLUMNS
    for name in wanted:
        if name in names:
            return name
    there = ", ".join(names) or "none"
    raise InputError(
        f"{where} has no column {' or '.join(wanted)}; its columns are: {there}; set activations.column to one of them"
    )


def checked_column(array: pa.Array, *, where: str, column: str) -> pa.Array:
    """Returns an array of strings or of lists of integers without nulls.

    Raises:
        InputError: if it is of another type.
    """
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if types.is_null(kind) and column == "text":
        return pa.array([], pa.string())
    if not (types.is_string(kind) or types.is_large_string(kind) or (is_list and types.is_integer(kind.value_type))):
        raise InputError(
            f"{where}: column {column} holds {kind}, neither text nor lists of token ids; name another in activations.column"
        )
    return array.drop_null() if array.null_count else array


def _kind(file: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in file.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    elif suffixes and suffixes[-1] == ".parquet":
        return "parquet"
    last = suffixes[-1] if suffixes else ""
    return {".jsonl": "json", ".json": "json", ".ndjson": "json", ".txt": "text", ".text": "text"}.get(last)


def _read_parquet(file: Path, column: str | None) -> Iterator[tuple[Piece, float]]:
    try:
        with pq.ParquetFile(file) as parquet:
            name = choose_column(parquet.schema_arrow.names, column=column, where=str(file))
            rows, done = parquet.metadata.num_rows, 0
            for batch in parquet.iter_batches(batch_size=DOCUMENTS_PER_PIECE, columns=[name]):
                done += batch.num_rows
                yield Piece(checked_column(batch.column(0), where=str(file), column=name)), done / max(rows, 1)
    except pa.ArrowException as error:
        raise InputError(
            f"{file} is not a sound Parquet file ({_first_line(error)}); make it again or give another file"
        ) from error


def _text_stream(file: Path) -> tuple[pa.NativeFile, io.TextIOWrapper]:
    raw = pa.OSFile(str(file))
    compressed = file.suffix.lower() in COMPRESSIONS
    source = (
        pa.input_stream(raw, compression=file.suffix.lower()[1:].replace("gz", "gzip").replace("zst", "zstd"))
        if compressed
        else raw
    )
    return raw, io.TextIOWrapper(io.BufferedReader(source), encoding="utf-8")  # pyright: ignore[reportArgumentType] - NativeFile is a raw stream


def _read_json_lines(file: Path, column: str | None) -> Iterator[tuple[Piece, float]]:
    size = file.stat().st_size
    raw, lines = _text_stream(file)
    documents: list[Any] = []
    name: str | None = None
    number = 0
    with lines:
        for number, line in enumerate(_decoded(lines, file), start=1):
            if not line.strip():
                continue
            record = _json_record(line, file, number)
            name = name or choose_column(list(record), column=column, where=f"{file}:{number}")
            documents.append(record.get(name))
            if len(documents) == DOCUMENTS_PER_PIECE:
                yield Piece(_json_column(documents, file, number, name)), raw.tell() / size
                documents = []
        if documents and name is not None:
            yield Piece(_json_column(documents, file, number, name)), 1.0


def _json_record(line: str, file: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}:{number} is not JSON ({_first_line(error)}); each line must be one object") from error
    if not isinstance(record, dict):
        raise InputError(f"{file}:{number} is not a JSON object; each line must be one object with the documents' column")
    return record


def _json_column(documents: list[Any], file: Path, number: int, name: str) -> pa.Array:
    try:
        array = pa.array(documents)
    except (pa.ArrowException, OverflowError) as error:
        where = f"{file}: column {name}, near line {number}"
        raise InputError(
            f"{where}: values of different kinds ({_first_line(error)}); make them all text or all lists of ids"
        ) from error
    if types.is_list(array.type) and types.is_null(array.type.value_type):
        array = array.cast(pa.list_(pa.int64()))
    return checked_column(array, where=str(file), column=name)


def _read_text(file: Path, column: str | None) -> Iterator[tuple[Piece, float]]:
    """Yields a plain text file as one document in several pieces."""
    if column is not None and column != "text":
        raise InputError(f"activations.column is {column}, but {file} is plain text without columns; remove activations.column")
    size = file.stat().st_size
    raw, lines = _text_stream(file)
    with lines:
        held: list[str] = []
        length = 0
        for line in _decoded(lines, file):
            held.append(line)
            length += len(line)
            if length >= TEXT_PIECE:
                yield Piece(pa.array(["".join(held)]), continued=True), raw.tell() / size
                held, length = [], 0
        yield Piece(pa.array(["".join(held)])), 1.0


def _decoded(lines: io.TextIOWrapper, file: Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text ({error.reason}); convert it to UTF-8 or give another file") from error
    except OSError as error:
        raise SurroundingsError(f"{file} cannot be read ({_first_line(error)}); check the file and the disk") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_READERS = {"parquet": _read_parquet, "json": _read_json_lines, "text": _read_text}
