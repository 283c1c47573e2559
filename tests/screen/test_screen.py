"""What a person sees while a sweep runs: plain lines off a terminal, one live screen on it."""

import io
import os
import pty
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest
from stored_sweeps import config, measured

from prolu_tune.results.records import Record, new_record
from prolu_tune.screen.live import LiveScreen
from prolu_tune.screen.screen import PlainScreen, Screen, make_screen
from prolu_tune.screen.words import trial_label

ARCHITECTURES = ["relu+l1", "prolu_relu+sqrt_l1", "prolu_ste+l1"]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
RUN_ID = "0123456789abcdef0123456789abcdef"


def record(
    trial: int, architecture: str, coefficient: float, *, state: str = "finished", l0: float = 24.8, ce: float = 0.11
) -> Record:
    metrics = measured(l0, ce) if state == "finished" else {}
    run_id = f"{trial:02d}{RUN_ID[2:]}"
    return new_record(config(architecture, coefficient), run_id=run_id, trial=trial, state=state, metrics=metrics)


def play(screen: Screen) -> None:
    """A sweep of two trials, one of which fails."""
    screen.phase("making chunks", 1, 3)
    screen.phase("making chunks", 2, 3)
    screen.phase("making chunks", 3, 3)
    screen.phase("")
    screen.start("demo", ARCHITECTURES, 2)
    screen.trial_started(0, trial_label("prolu_ste+l1", 3.2e-4, 0), "prolu_ste+l1")
    screen.trial_started(1, trial_label("relu+l1", 0.9216, 0), "relu+l1")
    row = {"step": 60, "num_steps": 240, "tokens": 61440, "loss": 12.5, "l0": 300.0, "tokens_per_s": 31234.0}
    screen.trial_progress(0, row)
    done = record(0, "prolu_ste+l1", 3.2e-4)
    failed = record(1, "relu+l1", 0.9216, state="failed")
    screen.trial_ended(done, "finished")
    screen.trial_ended(
        failed, "failed", "RuntimeError: it broke\n  here; log: /far/away/prolu_runs/sweeps/demo/trials/0001/error.txt"
    )
    screen.finish([done, failed], [0], ["prolu-tune status demo", "prolu-tune pareto demo"])
    screen.stop()


def test_off_a_terminal_every_event_is_one_whole_line():
    out = io.StringIO()
    play(PlainScreen(out, now=lambda: "12:03:11"))
    assert out.getvalue().splitlines() == [
        "12:03:11 making chunks 1 of 3",
        "12:03:11 making chunks 3 of 3",
        "12:03:11 sweep demo: 2 trials, 3 architectures",
        "12:03:11 started prolu_ste+l1 c=3.2e-4 s0",
        "12:03:11 started relu+l1 c=0.9216 s0",
        "12:03:11 trial 1/2 done prolu_ste+l1 c=3.2e-4 L0 24.8 CE +0.11",
        "12:03:11 trial 2/2 failed relu+l1 c=0.9216: RuntimeError: it broke here; "
        "log: /far/away/prolu_runs/sweeps/demo/trials/0001/error.txt",
        "12:03:11 2 trials ended, 1 on the frontier",
        f"12:03:11 frontier L0 24.8 CE +0.11 prolu_ste+l1 c=3.2e-4 s0 00{RUN_ID[2:]}",
        "12:03:11 next: prolu-tune status demo",
        "12:03:11 next: prolu-tune pareto demo",
    ]


def test_off_a_terminal_a_heartbeat_tells_what_runs_and_stops_with_the_screen():
    out = io.StringIO()
    screen = PlainScreen(out, heartbeat_s=0.02, now=lambda: "12:03:11")
    screen.start("demo", ARCHITECTURES, 4, done=1)
    screen.trial_started(7, "relu+l1 c=0.9216 s0", "relu+l1")
    screen.trial_progress(7, {"step": 60, "num_steps": 240})
    deadline = time.monotonic() + 10
    while "25%" not in out.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    screen.stop()
    assert "12:03:11 1/4 done, 1 running, relu+l1 c=0.9216 s0 25%" in out.getvalue()
    length = len(out.getvalue())
    time.sleep(0.1)
    assert len(out.getvalue()) == length


def test_a_finished_sweep_can_be_shown_without_having_been_started():
    for screen in (PlainScreen(out := io.StringIO()), LiveScreen(out_live := io.StringIO(), width=80)):
        screen.finish([record(0, "relu+l1", 1.0)], [0], ["prolu-tune pareto demo"])
    assert "next: prolu-tune pareto demo" in out.getvalue()
    assert "next: prolu-tune pareto demo" in ESCAPES.sub("", out_live.getvalue())


@contextmanager
def terminal() -> Iterator[TextIO]:
    master, slave = pty.openpty()
    stream = os.fdopen(slave, "w")
    try:
        yield stream
    finally:
        stream.close()
        os.close(master)


@pytest.mark.parametrize(
    ("term", "kind"), [("xterm-256color", LiveScreen), ("dumb", PlainScreen), ("", PlainScreen), (None, PlainScreen)]
)
def test_the_live_screen_is_for_terminals_that_can_move_their_cursor(term, kind):
    environment = {} if term is None else {"TERM": term}
    with terminal() as stream:
        assert isinstance(make_screen(stream, environment), kind)
    assert isinstance(make_screen(io.StringIO(), {"TERM": "xterm"}), PlainScreen)


class Utf8(io.StringIO):
    """A stream that says what it can show."""

    encoding = "utf-8"


class Ascii(io.StringIO):
    encoding = "ascii"


def frames(stream: io.StringIO) -> list[str]:
    return [line.rstrip("\r") for line in ESCAPES.sub("", stream.getvalue()).splitlines()]


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_no_line_of_the_live_screen_is_wider_than_the_terminal(width):
    out = Utf8()
    screen = LiveScreen(out, width=width)
    screen.start("a-sweep-with-a-rather-long-name", ARCHITECTURES, 48)
    for index in range(12):
        architecture = ARCHITECTURES[index % 3]
        screen.trial_started(index, trial_label(architecture, 0.9216, 10), architecture)
        screen.trial_progress(index, {"step": 1, "num_steps": 9, "loss": 123.4, "l0": 1234.5, "tokens_per_s": 31234.0})
    for index in range(6):
        screen.trial_ended(record(index, ARCHITECTURES[index % 3], 0.9216, l0=5.0 + 20 * index), "finished")
    screen.phase("preparing activations of a model with a long name", 3, 12)
    screen.stop()
    assert max(len(line) for line in frames(out)) <= width


def test_the_live_screen_shows_counts_strips_running_trials_and_the_best():
    out = Utf8()
    screen = LiveScreen(out, width=80)
    screen.start("demo", ARCHITECTURES, 18, done=1, l0_range=(5, 500), records=[record(9, "relu+l1", 1.0, l0=50.0, ce=0.7)])
    screen.trial_started(0, "prolu_ste+l1 c=3.2e-4 s0", "prolu_ste+l1")
    screen.trial_started(1, "relu+l1 c=0.9216 s0", "relu+l1")
    screen.trial_progress(1, {"step": 60, "num_steps": 240, "loss": 12.5, "l0": 490.0, "tokens_per_s": 31234.0})
    screen.trial_ended(record(0, "prolu_ste+l1", 3.2e-4), "finished")
    screen.stop()
    last = frames(out)[-7:]
    assert last[0].startswith("demo  2/18 done  1 running")
    assert re.fullmatch(r"relu\+l1             ·+●·+○·*\s+1", last[2])
    assert re.fullmatch(r"prolu_relu\+sqrt_l1  ·+\s*", last[3])
    assert re.fullmatch(r"prolu_ste\+l1        ·+●·+\s+1", last[4])
    assert re.match(r"relu\+l1 c=0.9216 s0   25%  L0 490    loss 12.5   31.2k tok/s  ━━╌", last[5])
    assert re.match(r"best so far L0 up to 30   CE \+0.11   prolu_ste\+l1 c=3.2e-4 s0", last[6])


def test_the_end_of_a_live_screen_is_the_frontier_and_the_next_command():
    out = Utf8()
    play(LiveScreen(out, width=100))
    text = "\n".join(frames(out))
    assert "failed relu+l1 c=0.9216: RuntimeError: it broke here; log: /far/away/prolu_runs/sweeps/demo" in text
    assert "frontier: 1 of 1 finished trials" in text
    assert f"E L0 24.8   CE +0.11   prolu_ste+l1 c=3.2e-4 s0  00{RUN_ID[2:]}" in text
    assert text.endswith("next: prolu-tune status demo\n      prolu-tune pareto demo")


def test_an_id_is_shown_whole_or_not_at_all():
    out = Utf8()
    play(LiveScreen(out, width=60))
    assert RUN_ID[2:12] not in out.getvalue()


def test_without_colour_nothing_is_coloured():
    coloured, plain = Utf8(), Utf8()
    play(LiveScreen(coloured, width=80))
    play(LiveScreen(plain, width=80, color=False))
    color = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7])m")
    assert color.search(coloured.getvalue()) and not color.search(plain.getvalue())


def test_a_terminal_that_knows_ascii_only_gets_ascii_only():
    out = Ascii()
    play(LiveScreen(out, width=80))
    assert out.getvalue().isascii()


def test_stopping_twice_and_an_interrupted_trial_change_nothing():
    out = io.StringIO()
    screen = PlainScreen(out, now=lambda: "12:03:11")
    screen.start("demo", ARCHITECTURES, 2)
    screen.trial_started(0, "relu+l1 c=1 s0", "relu+l1")
    screen.trial_ended(record(0, "relu+l1", 1.0, state="interrupted"), "interrupted")
    screen.stop()
    screen.stop()
    assert out.getvalue().splitlines()[-1] == "12:03:11 trial 0/2 interrupted relu+l1 c=1"
