"""`ray up`, `prolu-tune run --cluster` from a laptop, a machine lost, the laptop cut off, `ray down`: all of it for real."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import REPOSITORY, Cluster, Machine

SPACE = REPOSITORY / "search_spaces" / "quickstart.yaml"
SMALL = [
    "--set",
    "training.num_tokens=65536",
    "--set",
    "resources.max_concurrent_trials=3",
    "--set",
    "training.checkpoint_every_s=2",
]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
SAME = ("architecture", "l1_coefficient", "state", "l0", "l1", "sqrt_l1", "mse", "fvu", "ce_loss_clean", "ce_loss_with_sae",
        "ce_loss_zero", "ce_degradation", "ce_loss_score", "frac_alive", "steps", "tokens", "on_frontier")  # fmt: skip
"""Of a record: all that may not depend on where and how often a trial ran."""


def _results(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: run[key] for key in SAME} for run in sorted(runs, key=lambda run: run["trial"])]


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The records of the same sweep on this machine alone."""
    command = [sys.executable, "-m", "prolu_tune.cli.main", "run", str(SPACE), *SMALL, "--json"]
    folder = tmp_path_factory.mktemp("one")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)["runs"]


def test_a_folder_that_is_not_shared_is_refused_with_the_machines_that_do_not_see_it(cluster: Cluster) -> None:
    _all_joined(cluster)
    process = cluster.lab.laptop.start(
        "prolu-tune", "run", str(SPACE), "--cluster", str(cluster.file), "--storage", "/root/mine", "--name", "unshared", *SMALL
    )
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 3, out[-4000:]
    assert "not every machine of the cluster sees the storage" in out
    assert "node2: /root/mine" in out
    assert "node3: /root/mine" in out
    assert "node1:" not in out


def test_the_frontier_is_that_of_one_machine_whatever_is_lost_on_the_way(
    cluster: Cluster, one_machine: list[dict[str, Any]]
) -> None:
    lab = cluster.lab
    _all_joined(cluster)
    command = f"prolu-tune run {SPACE} --cluster {cluster.file} --json {' '.join(SMALL)} > answer.json"
    process = lab.laptop.start("sh", "-c", command)
    lines: list[str] = []
    assert process.stdout is not None
    events = {" 5/18 done": lambda: lab.machines[2].power_off(), " 8/18 done": lambda: _cut_off(cluster)}
    for line in process.stdout:
        lines.append(line)
        for text in [text for text in events if text in line]:
            events.pop(text)()
    assert process.wait() == 0, "".join(lines[-60:])
    assert events == {}
    log = "".join(lines)
    assert "node3 is gone" in log
    answer = json.loads((lab.laptop.folder / "root" / "answer.json").read_text())
    assert _results(answer["runs"]) == _results(one_machine)
    asked = lab.laptop.run(
        "sh", "-c", f"prolu-tune pareto quickstart --cluster {cluster.file} --json 2>/dev/null", timeout_s=300
    )
    assert set(json.loads(asked)["frontier"]) == {run["run_id"] for run in answer["runs"] if run["on_frontier"]}
    for machine in lab.machines[:2]:
        assert list((machine.folder / "var_tmp").glob("prolu-tune-*/cache/chunks/*/*.arrow")), f"{machine.name} made no chunks"
    assert not (lab.shared / "cache").exists(), "activations went over the network"


def test_ray_down_leaves_nothing_running(cluster: Cluster) -> None:
    cluster.lab.laptop.run("ray", "down", "--yes", str(cluster.file), folder=REPOSITORY, timeout_s=300)
    # `ray down` stops the head; a worker's Ray ends by itself once the head has been silent for a minute.
    deadline = time.monotonic() + 180
    for machine in (machine for machine in cluster.lab.machines if machine.outer.poll() is None):
        while left := _ray_processes(machine):
            assert time.monotonic() < deadline, f"on {machine.name}: {left}"
            time.sleep(3)


def _ray_processes(machine: Machine) -> list[str]:
    names = [line.split()[0] for line in machine.run("ps", "-eo", "args").splitlines()]
    return [name for name in names if name.endswith(("/raylet", "/gcs_server")) or name.startswith("ray::")]


def _cut_off(cluster: Cluster) -> None:
    cluster.lab.cut(cluster.lab.laptop)
    time.sleep(20)
    cluster.lab.cut(cluster.lab.laptop, connected=True)


def _all_joined(cluster: Cluster) -> None:
    """Waits until Ray's autoscaler has brought up the workers, which it does after `ray up` has returned."""
    deadline = time.monotonic() + 600
    count = (
        "import ray; ray.init(address='auto', log_to_driver=False); print('NODES', sum(node['Alive'] for node in ray.nodes()))"
    )
    while True:
        python = str(Path.home() / "prolu-env/bin/python")
        out = cluster.head.run(python, "-c", count, env={"RAY_AUTH_MODE": "token"})
        if "NODES 3" in out:
            return
        assert time.monotonic() < deadline, out
        time.sleep(3)
