"""Several raylets on this machine: machines that come later, machines that die, storage that one of them does not see."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SPACE = Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml"
SMALL = ["training.num_tokens=32768", "evaluation.num_tokens=2048", "training.checkpoint_every_s=1"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
TOKEN = "0123456789abcdef" * 2


class Raylets:
    """A head that holds no trial, and machines that do, as processes of `ray start --block`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = 20000 + os.getpid() % 20000
        (folder / "token").write_text(TOKEN)
        (folder / "token").chmod(0o600)
        self.env = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_enable_autoscaler_v2": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.address = f"127.0.0.1:{self._port}"
        self._start(
            "head",
            ["--head", f"--port={self._port}", "--num-cpus=0", f"--temp-dir={folder / 'r'}", "--include-dashboard=false"],
        )
        _wait(lambda: (folder / "r" / "session_latest").exists(), 120)
        time.sleep(5)

    def _start(self, name: str, arguments: list[str], scratch: str | None = None) -> None:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--node-ip-address=127.0.0.1"]
        command += ["--disable-usage-stats", "--object-store-memory=100000000", *arguments]
        env = self.env | {"PROLU_SCRATCH": scratch or str(self._folder / f"scratch-{name}")}
        log = (self._folder / f"{name}.log").open("wb")
        # A session of its own: what is ended is the machine, that is all of its processes.
        self.processes[name] = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def add(self, name: str, scratch: str | None = None) -> None:
        """Has a machine with one CPU join."""
        self._start(name, [f"--address={self.address}", "--num-cpus=1", "--num-gpus=0"], scratch)

    def kill(self, name: str) -> None:
        """Ends a machine at once."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for name in reversed(list(self.processes)):
            self.kill(name)


def _wait(condition, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


@pytest.fixture
def raylets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raylets]:
    # Sockets have short names only.
    folder = Path(f"/tmp/pn{os.getpid()}")
    folder.mkdir()
    made = Raylets(folder)
    yield made
    made.close()
    subprocess.run(["rm", "-rf", str(folder)], check=True)


DRIVE = """
import sys
from pathlib import Path
from prolu_tune.results.records import to_json
from prolu_tune.screen.screen import make_screen
from prolu_tune.search.space import load_space
from prolu_tune.sweep.runner import run_sweep
from prolu_tune.sweep.settings import NodeType

space = load_space(sys.argv[1], overrides=sys.argv[4:])
kinds = (NodeType("machine", cpus=1, gpus=0, most=2),)
outcome = run_sweep(space, storage=Path(sys.argv[2]), address=sys.argv[3], node_types=kinds, screen=make_screen())
print(to_json({"runs": outcome.records}))
sys.exit(outcome.exit_code)
"""
"""What a job on a head does: the same as `prolu-tune run --address`, and it knows what the autoscaler may start."""


def _sweep(raylets: Raylets, storage: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVE, str(SPACE), str(storage), raylets.address, *SMALL, *more],
        env=raylets.env | {"PROLU_SCRATCH": str(storage.parent / "scratch-driver")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _read_until(process: subprocess.Popen[str], text: str, lines: list[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return
    raise AssertionError(f"{text!r} never came:\n{''.join(lines[-40:])}")


def test_machines_come_and_die_and_every_trial_ends_once(raylets: Raylets, tmp_path: Path) -> None:
    lines: list[str] = []
    process = _sweep(raylets, tmp_path / "runs", "training.num_tokens=98304")
    _read_until(process, "waiting for a machine that can hold a trial", lines)
    raylets.add("one")
    _read_until(process, "trial 2/18 done", lines)
    raylets.add("two")
    _read_until(process, "2 machines hold trials", lines)
    _read_until(process, " done ", lines)
    raylets.kill("one")
    _read_until(process, "is gone", lines)
    out, rest = process.communicate(timeout=900)
    log = "".join(lines) + rest
    assert process.returncode == 0, log[-6000:]
    runs = json.loads(out)["runs"]
    assert [run["trial"] for run in runs] == list(range(18))
    assert {run["state"] for run in runs} == {"finished"}
    assert "lost its process; it goes on from its last checkpoint" in log
    assert "marked dead" in (tmp_path / "runs/sweeps/quickstart/ray.log").read_text()
    chunks = {name: len(list(raylets._folder.glob(f"scratch-{name}/cache/chunks/*/*.arrow"))) for name in ("one", "two")}
    assert chunks["one"] and chunks["two"], "each machine makes its own chunks"
    assert not (tmp_path / "runs" / "cache").exists()


def test_a_driver_that_is_killed_goes_on_on_the_same_cluster_and_leaves_no_server_behind(
    raylets: Raylets, tmp_path: Path
) -> None:
    raylets.add("one")
    first = _sweep(raylets, tmp_path / "runs")
    _read_until(first, "trial 3/18 done", lines := [])
    first.kill()
    first.communicate()
    second = _sweep(raylets, tmp_path / "runs")
    out, log = second.communicate(timeout=900)
    assert second.returncode == 0, log[-6000:]
    assert "resumed: " in log, lines
    assert [run["trial"] for run in json.loads(out)["runs"]] == list(range(18))
    names = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] for pid in _descendants(raylets.processes["one"].pid)]
    assert b"ray::NodeActor" not in names


def _descendants(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def test_ctrl_c_reaches_trials_on_other_machines(raylets: Raylets, tmp_path: Path) -> None:
    raylets.add("one")
    process = _sweep(raylets, tmp_path / "runs", "training.num_tokens=400000", "activations.epochs=4")
    _read_until(process, "started", [])
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs/sweeps/quickstart/trials").glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline, "no trial has made a step"
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=300)
    assert process.returncode == 130, log[-3000:]
    assert re.search(r"stopping, saving \d trials", log)
    assert list((tmp_path / "runs/sweeps/quickstart/trials").glob("*/checkpoints/*.safetensors"))
