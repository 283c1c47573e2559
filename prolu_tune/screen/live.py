"""The live screen: a strip of L0 per architecture that fills, running trials, the best so far, the time left."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO, final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from prolu_tune.results.records import Record
from prolu_tune.screen.draw import axis_line, legend, letter, log_range, scatter, strip, style
from prolu_tune.screen.progress import RunningTrial, SweepProgress
from prolu_tune.screen.screen import CountingScreen, ended_line, frontier_records
from prolu_tune.screen.words import count, duration, fit, number, signed, trial_label

REFRESHES_PER_S = 4
FRONTIER_ROWS = 12
"""Runs of the frontier listed when the sweep ends; `prolu-tune pareto` shows all."""
BAR_WIDTH = 10


@final
class LiveScreen(CountingScreen):
    """One screen that is drawn anew in place and leaves its last state, the frontier and the next commands behind.

    Args:
        stream: The terminal.
        color: False under NO_COLOR.
        width: Columns; None: the terminal's.
        clock: Seconds that only grow, by which times are told.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        color: bool = True,
        width: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(clock)
        self._console = Console(
            file=stream, force_terminal=True, no_color=not color, width=width, highlight=False, markup=False, emoji=False
        )
        self._ascii_only = not (self._console.encoding or "").lower().startswith("utf")
        self._live: Live | None = None

    def _began(self, done: int) -> None:
        self._show()

    def _trial_began(self, label: str) -> None:
        pass

    def _trial_over(self, record: Record, state: str, message: str | None) -> None:
        if state not in ("finished", "stopped"):
            self.note(" ".join(ended_line(record, state, message).split()))

    def note(self, text: str) -> None:
        # soft_wrap: paths and ids in it stay whole, the terminal folds them.
        self._console.print(Text(text), soft_wrap=True)

    def _phase_moved(self, text: str, *, finished: bool) -> None:
        self._show()

    def finish(self, records: Sequence[Record], frontier: Iterable[int], next_commands: Sequence[str]) -> None:
        with self._lock:
            self._progress.running.clear()
            self._progress.phase = ""
        self.stop()
        chosen = frontier_records(records, frontier)
        finished = [record for record in records if record["state"] == "finished"]
        width = self._console.width
        self._console.print()
        for line in scatter(finished, chosen, width=min(width, 100), ascii_only=self._ascii_only):
            self._console.print(Text(line, no_wrap=True, overflow="crop"))
        for line in legend((record["architecture"] for record in finished), width):
            self._console.print(Text(line, style="dim", no_wrap=True, overflow="crop"))
        if chosen:
            self._console.print(Text(f"\nfrontier: {len(chosen)} of {len(finished)} finished trials", style="bold"))
        lines = [_frontier_line(record) for record in chosen[:FRONTIER_ROWS]]
        widest = max((len(line.plain) for line in lines), default=0)
        for line, record in zip(lines, chosen, strict=False):
            # An id is shown whole or not at all.
            if widest + len(record["run_id"] or "") + 2 <= width:
                line.append(" " * (widest + 2 - len(line.plain)) + (record["run_id"] or ""), style="dim")
            self._console.print(line)
        if len(chosen) > FRONTIER_ROWS:
            self._console.print(Text(f"  and {len(chosen) - FRONTIER_ROWS} more"))
        for position, command in enumerate(next_commands):
            self._console.print(Text(f"{'next: ' if position == 0 else '      '}{command}"), soft_wrap=True)

    def stop(self) -> None:
        if self._live is None:
            return
        live, self._live = self._live, None
        live.stop()
        self._console.print(self._frame())

    def _show(self) -> None:
        if self._live is None:
            # Standard output carries data: only what others print to standard error goes above the screen.
            self._live = Live(
                get_renderable=self._frame,
                console=self._console,
                refresh_per_second=REFRESHES_PER_S,
                transient=True,
                redirect_stdout=False,
            )
            self._live.start(refresh=True)

    def _frame(self) -> Group:
        """Returns the screen as it stands, every line within the terminal's width."""
        with self._lock:
            width, height = self._console.width, self._console.height
            lines = [_header(self._progress), *self._strips(width)]
            lines += self._running(width, max(2, height - len(lines) - 7))
            lines += _best(self._progress)
            if self._progress.phase:
                lines.append(Text(self._progress.phase, style="dim"))
        for line in lines:
            line.no_wrap, line.overflow = True, "crop" if self._ascii_only else "ellipsis"
        return Group(*lines)

    def _strips(self, width: int) -> list[Text]:
        """Returns the axis of L0 and one strip per architecture, with the number of its finished trials."""
        progress = self._progress
        if not progress.architectures:
            return []
        running = list(progress.running.values())
        # A fresh SAE is half dense: running trials set the axis only until the first one has landed.
        axis = (
            progress.l0_range
            or log_range(record["l0"] for record in progress.finished())
            or log_range(trial.row.get("l0") for trial in running)
        )
        name_width = min(max(len(name) for name in progress.architectures), max(8, width // 2))
        strip_width = max(8, width - name_width - 5)
        lines = [Text(f"{'L0':<{name_width}} {axis_line(axis, strip_width)}", style="dim")]
        for name in progress.architectures:
            finished = progress.finished(name)
            cells = strip(
                [record["l0"] for record in finished],
                [trial.row.get("l0") for trial in running if trial.architecture == name],
                axis=axis,
                width=strip_width,
                ascii_only=self._ascii_only,
            )
            line = Text(f"{fit(name, name_width):<{name_width}} ")
            line.append(cells, style=style(name))
            line.append(f"{len(finished):>4}" if finished else "    ")
            lines.append(line)
        return lines

    def _running(self, width: int, most: int) -> list[Text]:
        """Returns a line per running trial, at most so many."""
        trials = list(self._progress.running.values())
        shown = trials if len(trials) <= most else trials[: most - 1]
        label_width = max((len(trial.label) for trial in shown), default=0)
        lines = [self._running_line(trial, label_width, width) for trial in shown]
        if len(shown) < len(trials):
            lines.append(Text(f"and {len(trials) - len(shown)} more running", style="dim"))
        return lines

    def _running_line(self, trial: RunningTrial, label_width: int, width: int) -> Text:
        """Returns a running trial with as many of its values as fit, the most telling first."""
        row = trial.row
        line = Text(f"{trial.label:<{label_width}}", style=style(trial.architecture))
        if not row:
            return line.append("  starting", style="dim")
        values = [f"  {trial.share:>4.0%}", f"  L0 {number(row.get('l0')):<5}", f"  loss {number(row.get('loss')):<5}"]
        if row.get("tokens_per_s") is not None:
            values.append(f"  {count(row['tokens_per_s'])} tok/s")
        for value in values:
            if len(line.plain) + len(value) <= width:
                line.append(value, style="default")
        if width - len(line.plain) >= BAR_WIDTH + 2:
            full, empty = ("#", ".") if self._ascii_only else ("━", "╌")
            filled = round(trial.share * BAR_WIDTH)
            line.append(f"  {full * filled}", style=style(trial.architecture))
            line.append(empty * (BAR_WIDTH - filled), style="dim")
        return line


def _header(progress: SweepProgress) -> Text:
    """Returns name, counts and times."""
    amount = f"{progress.done}" if progress.total is None else f"{progress.done}/{progress.total}"
    line = Text(progress.sweep, style="bold").append(f"  {amount} done", style="not bold")
    if progress.running:
        line.append(f"  {len(progress.running)} running", style="not bold")
    for state, color in (("stopped", "not bold"), ("diverged", "yellow"), ("failed", "red")):
        if number_of := sum(record["state"] == state for record in progress.records):
            line.append(f"  {number_of} {state}", style=color)
    line.append(f"  {duration(progress.elapsed_s)}", style="not bold")
    if progress.running and progress.time_left_s is not None:
        line.append(f", about {duration(progress.time_left_s)} left", style="not bold")
    return line


def _best(progress: SweepProgress) -> list[Text]:
    """Returns the run of lowest degradation under each limit of L0."""
    lines = []
    for position, (limit, record) in enumerate(progress.best()):
        line = Text(f"{'best so far' if position == 0 else '':<12}", style="bold")
        line.append(f"L0 up to {limit:<4g} CE {signed(record['ce_degradation']):<7} ", style="not bold")
        label = trial_label(record["architecture"], record["l1_coefficient"], record["seed"])
        lines.append(line.append(label, style=f"not bold {style(record['architecture'])}"))
    return lines


def _frontier_line(record: Record) -> Text:
    """Returns a run of the frontier without its id."""
    line = Text(f"  {letter(record['architecture'])} ", no_wrap=True, overflow="crop")
    line.append(f"L0 {number(record['l0']):<6} CE {signed(record['ce_degradation']):<7} ")
    label = trial_label(record["architecture"], record["l1_coefficient"], record["seed"])
    return line.append(label, style=style(record["architecture"]))
