"""Events of a sweep: written on the head, played here, the same on the screen as if the sweep ran here."""

import io
import json
import math

import pytest

from prolu_tune.launch.events import MARK, PROGRESS_BYTES_PER_S, EventClock, EventPlayer, EventScreen
from prolu_tune.screen.screen import PlainScreen, Screen

RECORD = {
    "run_id": "0" * 32, "trial": 0, "architecture": "relu+l1", "l1_coefficient": 0.5, "seed": 0, "state": "finished",
    "l0": 24.8, "ce_degradation": 0.11,
}  # fmt: skip


def drive(screen: Screen) -> None:
    """Tells a screen a short sweep."""
    screen.phase("starting")
    screen.start("toy", ["relu+l1"], 2, done=0, l0_range=(5.0, 200.0))
    screen.phase("making chunks", 1, 3)
    screen.trial_started(0, "relu+l1 c=0.5 s0", "relu+l1")
    screen.trial_progress(0, {"step": 5, "num_steps": 10, "l0": 30.0, "loss": 1.5})
    screen.note("a note with\na newline")
    screen.trial_ended(RECORD, "finished")
    screen.trial_started(1, "relu+l1 c=1 s0", "relu+l1")
    screen.trial_ended(RECORD | {"trial": 1, "state": "failed", "l0": None}, "failed", "it broke")
    screen.finish([RECORD], [0], ["prolu-tune pareto toy", "the same command again goes on"])
    screen.stop()


def plain(stream: io.StringIO) -> PlainScreen:
    return PlainScreen(stream, now=lambda: "00:00:00")


def test_what_is_played_here_is_what_a_screen_there_would_have_shown() -> None:
    there, here, log = io.StringIO(), io.StringIO(), io.StringIO()
    drive(plain(there))
    drive(EventScreen(log))
    player = EventPlayer(plain(here), EventClock())
    assert all(player.play(line) for line in log.getvalue().splitlines())
    assert here.getvalue() == there.getvalue()
    assert player.records == [RECORD] and player.exit_code is None


def test_commands_that_come_next_mean_the_cluster() -> None:
    log, here = io.StringIO(), io.StringIO()
    drive(EventScreen(log))
    player = EventPlayer(plain(here), EventClock(), " --cluster c.yaml")
    for line in log.getvalue().splitlines():
        player.play(line)
    assert "next: prolu-tune pareto toy --cluster c.yaml\n" in here.getvalue()
    assert here.getvalue().endswith("next: the same command again goes on\n")


def test_the_last_line_tells_how_it_ended_and_values_that_json_lacks_are_none() -> None:
    log = io.StringIO()
    screen = EventScreen(log)
    screen.trial_progress(0, {"loss": math.nan, "l0": math.inf})
    screen.end(3, "the disk is full")
    rows, _ = (json.loads(line.removeprefix(MARK)) for line in log.getvalue().splitlines())
    assert rows["rows"] == [[0, {"loss": None, "l0": None}]]
    player = EventPlayer(plain(io.StringIO()), EventClock())
    for line in log.getvalue().splitlines():
        player.play(line)
    assert (player.exit_code, player.message) == (3, "the disk is full")


@pytest.mark.parametrize(
    "line", ["", "Traceback", MARK, f"{MARK}{{", f'{MARK}{{"at": 1}}', f'{MARK}{{"at": 1, "event": "exec"}}', f"{MARK}[]"]
)
def test_strange_and_torn_lines_are_no_events(line: str) -> None:
    assert not EventPlayer(plain(io.StringIO()), EventClock()).play(line)


def test_rows_of_running_trials_stay_within_a_megabyte_an_hour() -> None:
    log, time = io.StringIO(), [0.0]
    screen = EventScreen(log, now=lambda: time[0])
    for second in range(3600):
        time[0] = float(second)
        for trial in range(64):
            screen.trial_progress(
                trial, {"step": second, "num_steps": 99999, "l0": 25.123456, "loss": 1.23456, "tokens_per_s": 1e6}
            )
        screen.phase("making chunks", second, 3600)
    assert 0.5 * 3600 * PROGRESS_BYTES_PER_S < len(log.getvalue()) < 1.2 * 3600 * PROGRESS_BYTES_PER_S
    last = json.loads(log.getvalue().splitlines()[-1].removeprefix(MARK))
    assert last["event"] == "progress" and len(last["rows"]) == 64 and last["rows"][0][1]["step"] > 3500


def test_a_player_that_comes_late_shows_the_time_of_the_events() -> None:
    clock = EventClock()
    out = io.StringIO()
    player = EventPlayer(PlainScreen(out, clock=clock.seconds, now=clock.time_of_day), clock)
    player.play(MARK + json.dumps({"at": 1_000_000_000.0, "event": "note", "text": "long ago"}))
    assert 1_000_000_000.0 <= clock.seconds() < 1_000_000_010.0
    import time

    assert out.getvalue() == time.strftime("%H:%M:%S", time.localtime(1_000_000_000)) + " long ago\n"
