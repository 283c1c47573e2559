"""Records as tables for people, and as CSV, Markdown and Parquet for programs."""

import csv
import io
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prolu_tune.errors import InputError
from prolu_tune.results.records import COUNTS, FIELDS, METRICS, Record
from prolu_tune.screen.words import coefficient, count, duration, number, signed

Format = Literal["csv", "md", "parquet"]
WHOLE = ("trial", "seed", "steps", "tokens")
REAL = ("l1_coefficient", "lr", *METRICS, *(name for name in COUNTS if name not in WHOLE))


@dataclass(frozen=True)
class Column:
    """One column of a table for people."""

    key: str
    title: str
    right: bool = True
    weight: int = 0
    """Columns of the highest weight give way first where the terminal is too narrow; 0 never does."""


RUN_COLUMNS: tuple[Column, ...] = (
    Column("on_frontier", "", right=False),
    Column("architecture", "architecture", right=False),
    Column("l1_coefficient", "l1_coef"),
    Column("lr", "lr", weight=4),
    Column("seed", "seed", weight=5),
    Column("l0", "L0"),
    Column("ce_degradation", "CE +nats"),
    Column("mse", "MSE", weight=3),
    Column("fvu", "FVU", weight=6),
    Column("frac_alive", "alive", weight=7),
    Column("tokens", "tokens", weight=8),
    Column("wall_s", "time", weight=9),
    Column("run_id", "run_id", right=False),
)


def cell(key: str, value: Any) -> str:
    """Returns a field as people read it; `-` for none."""
    if key == "on_frontier":
        return "*" if value else ""
    if value is None:
        return "-"
    if key in ("l1_coefficient", "lr"):
        return coefficient(value)
    if key == "frac_alive":
        return f"{100 * value:.3g} %"
    if isinstance(value, str) or key in ("trial", "seed"):
        return str(value)
    formats = {"tokens": count, "steps": count, "wall_s": duration, "ce_degradation": signed}
    return formats.get(key, number)(value)


def aligned(records: Sequence[Record], columns: Sequence[Column] = RUN_COLUMNS, *, width: int | None = None) -> list[str]:
    """Returns a heading and a line per record, columns aligned.

    Args:
        records: What to show.
        columns: Which fields, in order.
        width: Columns of the terminal: fields that are the same in all records, then less important ones are left out
            until the table fits; none is ever cut, and where nothing more can be left out the last column gets lines of
            its own. None: all fields.
    """
    shown = list(columns)
    while True:
        rows = [[cell(column.key, record.get(column.key)) for column in shown] for record in records]
        widths = [max(len(text) for text in texts) for texts in zip([c.title for c in shown], *rows, strict=True)]
        heaviest = max(shown, key=lambda column: _dispensable(column, records))
        fits = width is None or sum(widths) + 2 * (len(shown) - 1) <= width
        if fits or not heaviest.weight:
            break
        shown.remove(heaviest)
    # Rather a line of its own for the last column, the id, than lines that the terminal breaks where it likes.
    below = [] if fits else [row.pop() for row in rows]
    headings = [column.title for column in (shown if fits else shown[:-1])]
    lines = [
        "  ".join(
            f"{text:>{size}}" if column.right else f"{text:<{size}}"
            for text, size, column in zip(row, widths, shown, strict=False)
        ).rstrip()
        for row in (headings, *rows)
    ]
    if fits:
        return lines
    return [lines[0], *(line for pair in zip(lines[1:], below, strict=True) for line in (pair[0], f"{'':<4}{pair[1]}"))]


def folded(text: str, width: int | None) -> str:
    """Returns the text broken between words to fit a terminal; None: as it is."""
    if width is None:
        return text
    return "\n".join(textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in text.splitlines())


def _dispensable(column: Column, records: Sequence[Record]) -> int:
    """Returns the weight of a column, raised where it tells no record from another."""
    same = len({record.get(column.key) for record in records}) == 1
    return column.weight + 100 if column.weight and same else column.weight


def terminal_width() -> int | None:
    """Returns the columns of the terminal on standard output; None where it is none, and nothing needs to fit."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def write_table(
    records: Sequence[Record], form: Format, *, sweeps: Sequence[str] | None = None, extra: Sequence[str] = ()
) -> None:
    """Writes the records to standard output, every field of `records.FIELDS`.

    Args:
        records: A row each.
        form: csv: empty for none, true and false; md: rounded for reading; parquet: typed columns.
        sweeps: Name of each record's sweep, where several were asked for; the last column.
        extra: Further numbers that the records hold.

    Raises:
        InputError: if Parquet would go to a terminal.
    """
    names = [*FIELDS, *extra] + (["sweep"] if sweeps is not None else [])
    rows = [record | ({"sweep": sweeps[i]} if sweeps is not None else {}) for i, record in enumerate(records)]
    if form == "parquet":
        if sys.stdout.isatty():
            raise InputError("--format parquet writes bytes; send them to a file: > runs.parquet")
        sys.stdout.flush()
        sys.stdout.buffer.write(parquet_bytes(rows, names, real=(*REAL, *extra)))
        sys.stdout.buffer.flush()
    else:
        sys.stdout.write(csv_text(rows, names) if form == "csv" else markdown_text(rows, names))


def csv_text(rows: Sequence[Record], names: Sequence[str]) -> str:
    """Returns the rows as CSV with a heading; numbers in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([str(value).lower() if isinstance(value := row[name], bool) else value for name in names])
    return out.getvalue()


def markdown_text(rows: Sequence[Record], names: Sequence[str]) -> str:
    """Returns the rows as a Markdown table, rounded for reading."""
    lines = [f"| {' | '.join(names)} |", f"|{'|'.join(' --- ' for _ in names)}|"]
    for row in rows:
        cells = [cell(name, row[name]).replace("|", "\\|") for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def parquet_bytes(rows: Sequence[Record], names: Sequence[str], *, real: Sequence[str] = REAL) -> bytes:
    """Returns the rows as a Parquet file: whole numbers, floats (`real`), one bool, strings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {name: pa.int64() for name in WHOLE} | {name: pa.float64() for name in real} | {"on_frontier": pa.bool_()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in names])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink)
    return sink.getvalue().to_pybytes()
