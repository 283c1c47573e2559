"""Pictures made of characters: the strip of L0 that fills, and the frontier as a scatter.

Colour is never alone: strips have their name in front, and in a scatter each architecture has its own letter.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

from plotille import Canvas

from prolu_tune.config.names import place
from prolu_tune.results.records import Record
from prolu_tune.screen.words import number, signed

STYLES: tuple[str, ...] = ("blue", "cyan", "yellow", "green", "red", "magenta")
BLANK_BRAILLE = "⠀"
TICKS: tuple[float, ...] = tuple(digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5))


def letter(architecture: str) -> str:
    """Returns the letter of an architecture, the same in every sweep."""
    return chr(ord("A") + place(architecture))


def style(architecture: str) -> str:
    """Returns the rich style of an architecture, the same in every sweep."""
    return STYLES[place(architecture) % len(STYLES)]


def log_range(values: Iterable[float | None]) -> tuple[float, float] | None:
    """Returns ticks that enclose the positive values, a factor of 10 or more apart; None without any."""
    positive = [value for value in values if value is not None and value > 0]
    if not positive:
        return None
    low = max((tick for tick in TICKS if tick <= min(positive)), default=TICKS[0])
    high = min((tick for tick in TICKS if tick >= max(positive)), default=TICKS[-1])
    while high / low < 10:
        low = max((tick for tick in TICKS if tick < low), default=low / 2)
        if high / low < 10:
            high = min((tick for tick in TICKS if tick > high), default=high * 2)
    return low, high


def _column(value: float, low: float, high: float, width: int) -> int:
    """Returns the column of a value on a log axis: -1 below it, `width` above it."""
    if value <= 0 or value < low:
        return -1
    if value > high:
        return width
    return min(width - 1, int(math.log(value / low) / math.log(high / low) * width))


def strip(
    finished: Iterable[float | None],
    running: Iterable[float | None],
    *,
    axis: tuple[float, float] | None,
    width: int,
    ascii_only: bool = False,
) -> str:
    """Returns one line: where on the log axis of L0 trials have landed and where running ones are now.

    Args:
        finished: Final L0 of finished trials.
        running: Latest L0 of running ones.
        axis: Lowest and highest L0; None while nothing is known: an empty strip.
        width: Columns; the first and the last hold what lies outside of the axis.
        ascii_only: For terminals that cannot show more.
    """
    empty, here, landed = (".", "o", "#") if ascii_only else ("·", "○", "●")
    inner = max(1, width - 2)
    cells, ends = [empty] * inner, [" ", " "]
    for values, mark in ((running, here), (finished, landed)):
        for value in values:
            if value is None or axis is None:
                continue
            column = _column(value, *axis, inner)
            if column < 0:
                ends[0] = "<"
            elif column >= inner:
                ends[1] = ">"
            else:
                cells[column] = mark
    return f"{ends[0]}{''.join(cells)}{ends[1]}"


def axis_line(axis: tuple[float, float] | None, width: int) -> str:
    """Returns the ticks of a strip of that width, those that fit."""
    line = [" "] * width
    if axis is None:
        return ""
    inner = max(1, width - 2)
    ticks = sorted((tick for tick in TICKS if axis[0] <= tick <= axis[1]), key=_roundness)
    for tick in ticks:
        text = f"{tick:g}"
        start = max(0, min(width - len(text), 1 + _column(tick, *axis, inner) - len(text) // 2))
        if all(cell == " " for cell in line[max(0, start - 1) : start + len(text) + 1]):
            line[start : start + len(text)] = text
    return "".join(line).rstrip()


def _roundness(tick: float) -> tuple[bool, float]:
    """Sorts powers of ten first, so that they keep their place when space is short."""
    return not math.isclose(math.log10(tick) % 1, 0, abs_tol=1e-9), tick


def scatter(
    records: Sequence[Record],
    frontier: Sequence[Record],
    *,
    x: str = "l0",
    y: str = "ce_degradation",
    width: int = 80,
    height: int = 14,
    ascii_only: bool = False,
) -> list[str]:
    """Returns the lines of a scatter of the records: a letter for each run, the frontier as a line through its runs.

    The x axis is logarithmic where all x are above 0. Empty where no record has both values.

    Args:
        records: Finished trials.
        frontier: Those of them on the frontier.
        x: Field along the x axis.
        y: Field along the y axis.
        width: Columns of the widest line.
        height: Lines of the plotting area.
        ascii_only: For terminals that cannot show more.
    """
    placed = [record for record in records if record.get(x) is not None and record.get(y) is not None]
    if not placed:
        return []
    logarithmic = all(record[x] > 0 for record in placed)
    to_axis: Callable[[float], float] = math.log10 if logarithmic else float
    (x_low, x_high), (y_low, y_high) = _limits([to_axis(r[x]) for r in placed]), _limits([r[y] for r in placed])
    margin = 9
    canvas = Canvas(max(10, width - margin - 1), height, xmin=x_low, xmax=x_high, ymin=y_low, ymax=y_high)
    chosen = {id(record) for record in frontier}
    stairs = sorted((to_axis(r[x]), r[y]) for r in placed if id(r) in chosen)
    for (x0, y0), (x1, y1) in itertools.pairwise(stairs):
        canvas.line(x0, y0, x1, y0)
        canvas.line(x1, y0, x1, y1)
    # Runs of the frontier last: they stay visible where two fall into one cell.
    for record in sorted(placed, key=lambda record: id(record) in chosen):
        mark = letter(record["architecture"])
        canvas.text(to_axis(record[x]), record[y], mark if id(record) in chosen else mark.lower())
    rows = [_without_blanks(row, ascii_only=ascii_only) for row in canvas.plot().split("\n")]
    ticks = {0: y_high, len(rows) // 2: (y_low + y_high) / 2, len(rows) - 1: y_low}
    tick = signed if y == "ce_degradation" else number
    lines = [f"{tick(ticks[i]) if i in ticks else '':>{margin - 1}} |{row}" for i, row in enumerate(rows)]
    return [f"{y:>{margin - 1}}", *lines, *_x_axis(x, x_low, x_high, logarithmic, margin, canvas.width)]


def legend(architectures: Iterable[str], width: int = 80) -> list[str]:
    """Returns lines that say which letter stands for which architecture."""
    entries = [f"{letter(name)} {name}" for name in sorted(set(architectures), key=place)]
    cell = max((len(entry) for entry in entries), default=0) + 2
    per_line = max(1, width // cell)
    rows = [entries[start : start + per_line] for start in range(0, len(entries), per_line)]
    return ["".join(f"{entry:<{cell}}" for entry in row).rstrip() for row in rows]


def _without_blanks(row: str, *, ascii_only: bool) -> str:
    """Returns the row with blanks for empty braille cells, whose dots some fonts draw, and no blanks at its end."""
    row = row.replace(BLANK_BRAILLE, " ").rstrip()
    return "".join(cell if cell.isascii() else "." for cell in row) if ascii_only else row


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Returns limits with a margin, so that no run lies on the edge."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or abs(high) * 0.1 or 0.1
    return low - margin, high + margin


def _x_axis(name: str, low: float, high: float, logarithmic: bool, margin: int, width: int) -> list[str]:
    """Returns the axis and its values."""
    rule = f"{'':>{margin}}+{'-' * width}"
    ends = [10**value if logarithmic else value for value in (low, (low + high) / 2, high)]
    left, middle, right = (number(value) for value in ends)
    label = f"{middle} ({name}{', log' if logarithmic else ''})"
    gap = max(1, width // 2 - len(left) - len(middle) // 2)
    values = f"{left}{'':>{gap}}{label}"
    return [rule, f"{'':>{margin}} {values}{right:>{max(len(right) + 1, width - len(values))}}"]
