"""How a sweep stands, in lines for people, once or again and again."""

import sys
import time
from collections.abc import Callable
from typing import Any

from prolu_tune.cli.tables import terminal_width
from prolu_tune.screen.words import count, duration, number

BAR = 24


def status_lines(document: dict[str, Any]) -> list[str]:
    """Returns the lines of a status document (`sweep.status.status_document`); ids, messages and paths are never cut."""
    total = document["total"]
    ended = sum(n for state, n in document["states"].items() if state not in ("running", "pending", "interrupted"))
    states = ", ".join(f"{n} {state}" for state, n in document["states"].items()) or "no trials"
    lines = [f"{document['sweep']}: {ended}{f' of {total}' if total is not None else ''} trials ended ({states})"]
    pace = [f"{count(document['tokens_per_s'])} tokens/s a trial"] if document["tokens_per_s"] else []
    if document["time_left_s"]:
        pace.append(f"about {duration(document['time_left_s'])} left")
    if pace:
        lines.append(", ".join(pace))
    lines += _coverage_lines(document["coverage"])
    if document["running"]:
        lines.append("")
    for trial in document["running"]:
        share = f"{trial['share']:.0%}" if trial["share"] is not None else "starting"
        lines.append(f"running  {trial['label']}  {share}  L0 {number(trial['l0'])}  loss {number(trial['loss'])}")
    for trial in document["failed"]:
        lines += ["", f"{trial['state']}  {trial['label']}  {trial['run_id']}"]
        lines += [f"  {trial['message']}"] if trial["message"] else []
        lines += [f"  log: {trial['log']}"] if trial["log"] else []
    return lines


def watch_status(load: Callable[[], dict[str, Any]], interval_s: float) -> int:
    """Returns the exit code once the sweep has ended or Ctrl-C was pressed; until then shows its status at every interval.

    Off a terminal it says a line when the states of trials have changed.

    Args:
        load: Reads the document.
        interval_s: Seconds between two looks.
    """
    try:
        if sys.stdout.isatty():
            return _watch_live(load, interval_s)
        return _watch_plainly(load, interval_s)
    except KeyboardInterrupt:
        print("the sweep goes on without being watched", file=sys.stderr)
        return 130


def _watch_live(load: Callable[[], dict[str, Any]], interval_s: float) -> int:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    document = load()
    with Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        while True:
            # Folded, not cut: ids and paths stay whole.
            live.update(Text("\n".join(status_lines(document)), overflow="fold"), refresh=True)
            if document["run_status"] != "RUNNING":
                return 0 if document["runs"] else 1
            time.sleep(interval_s)
            document = load()


def _watch_plainly(load: Callable[[], dict[str, Any]], interval_s: float) -> int:
    said: dict[str, int] | None = None
    while True:
        document = load()
        if document["states"] != said:
            said = document["states"]
            print(f"{time.strftime('%H:%M:%S')} {status_lines(document)[0]}", flush=True)
        if document["run_status"] != "RUNNING":
            return 0 if document["runs"] else 1
        time.sleep(interval_s)


def _coverage_lines(coverage: dict[str, dict[str, Any]]) -> list[str]:
    """Returns a bar of filled bins per architecture."""
    if not coverage:
        return []
    low, high = next(iter(coverage.values()))["target"]
    size = max(len(name) for name in coverage)
    narrow = (terminal_width() or 80) < size + BAR + 36
    lines = ["", f"coverage of L0 {number(low)} to {number(high)}"]
    for name, entry in coverage.items():
        full = round(BAR * entry["filled"] / entry["bins"])
        bar = "" if narrow else f"{'#' * full}{'.' * (BAR - full)}  "
        gap = f"largest gap {entry['largest_gap']:.0%}"
        lines.append(f"  {name:<{size}}  {bar}{entry['filled']:>3} of {entry['bins']} bins  {gap}")
    return lines
