"""Real processes that get real signals, with a stand-in for the sweep."""

import json
import signal
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

PROGRAM = """
import sys, time
from prolu_tune.sweep import signals

class Screen:
    def note(self, text): print(text, file=sys.stderr, flush=True)
    def stop(self): {stop}

class Driver:
    stopping, running, screen = False, {{1, 2}}, Screen()
    def request_stop(self): self.stopping = True

driver = Driver()
signals.GRACE_S = 2.0
with signals.StopSignals(driver):
    print("up", flush=True)
    {body}
print("saved", flush=True)
sys.exit(130)
"""
UNTIL_STOPPED = "while not driver.stopping: time.sleep(0.01)\n    time.sleep(1)  # for the note, which a thread writes"
FOR_EVER = "while True: time.sleep(0.01)"


def _start(body: str, *, stop: str = "pass") -> "subprocess.Popen[str]":
    program = PROGRAM.format(body=body, stop=stop)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_trials_save_and_says_so(number: int) -> None:
    process = _start(UNTIL_STOPPED)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == "saved\n"
    assert err == "stopping, saving 2 trials (again to stop at once)\n"


def test_the_second_signal_leaves_at_once_and_ends_the_children() -> None:
    process = _start(
        f"import subprocess; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); {FOR_EVER}".replace(
            "; while", "\n    while"
        )
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert time.monotonic() - started < 10
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_when_the_grace_runs_out_the_process_leaves_even_with_a_screen_that_never_answers() -> None:
    process = _start(FOR_EVER, stop="time.sleep(600)")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130


AS_RAY_DOES = """
    import os, signal
    def start(signalled):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        if signalled: os.kill(os.getpid(), signal.SIGTERM)
    try:
        with signals.keep_handler(): start({signalled})
    except signals.SignalledError: driver.request_stop()
    if not {signalled}: signal.alarm(1)  # that of Ray's handler in C++
    if not {signalled}: os.kill(os.getpid(), signal.SIGTERM)
    while not driver.stopping: time.sleep(0.01)
    time.sleep(1.5)
"""


@pytest.mark.parametrize("signalled", [False, True])
def test_ray_takes_no_signal_away_while_it_starts_or_after(signalled: bool) -> None:
    """It puts handlers of its own in the place of ours: one exits with 15, one aborts the process 3 s later."""
    process = _start(AS_RAY_DOES.format(signalled=signalled).strip())
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "saved\n"), err
    assert "stopping, saving 2 trials" in err


LOST = """
import json, os, sys
from prolu_tune.sweep import signals

class Screen:
    def note(self, text): assert "raylet died" in text
    def stop(self): pass

def case(restartable, times, **state):
    child = os.fork()
    if child == 0:
        unmoved = {"screen": Screen(), "stopping": False, "failure": None, "restart": None, "moved": False}
        driver = type("Driver", (), unmoved | state)
        if restartable:
            driver.restart = lambda: os._exit(70 + int(os.environ[signals.RESTARTS]))
        os.environ[signals.RESTARTS] = times
        signals.start_again(driver, "raylet")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

print(json.dumps([case(**json.loads(argument)) for argument in sys.argv[1:]]))
"""


def test_a_lost_ray_starts_the_command_again_unless_there_is_none_it_stops_anyway_or_nothing_moves() -> None:
    """Codes from 70 on: the command is started again, and how often that happened in a row."""
    cases: list[tuple[dict[str, Any], int]] = [
        ({"restartable": True, "times": "0"}, 71),
        ({"restartable": True, "times": "4"}, 75),
        ({"restartable": True, "times": "5"}, 3),
        ({"restartable": True, "times": "5", "moved": True}, 71),
        ({"restartable": False, "times": "0"}, 3),
        ({"restartable": True, "times": "0", "stopping": True}, 130),
        ({"restartable": True, "times": "0", "stopping": True, "failure": "disk full"}, 3),
    ]
    command = [sys.executable, "-c", LOST, *(json.dumps(case) for case, _ in cases)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == [code for _, code in cases]
