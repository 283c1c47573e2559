"""`ray up`, `prolu-tune run --cluster` from a laptop, a machine lost, the laptop cut off, `ray down`: all of it for real."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .conftest import REPOSITORY, Cluster, Machine

RUN = ("prolu-tune", "run", "search_spaces/quickstart.yaml")
"""All that a person types after `ray up cluster/local.yaml`."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
SAME = ("architecture", "l1_coefficient", "state", "l0", "l1", "sqrt_l1", "mse", "fvu", "ce_loss_clean", "ce_loss_with_sae",
        "ce_loss_zero", "ce_degradation", "ce_loss_score", "frac_alive", "steps", "tokens", "on_frontier")  # fmt: skip
"""Of a record: all that may not depend on where and how often a trial ran."""


def _results(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: run[key] for key in SAME} for run in sorted(runs, key=lambda run: run["trial"])]


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The records of the same sweep on this machine alone."""
    command = [sys.executable, "-m", "prolu_tune.cli.main", "run", str(REPOSITORY / RUN[2]), "--address", "local", "--json"]
    told = []
    for _ in range(3):  # Ray gives up starting on a machine that is too busy
        folder = tmp_path_factory.mktemp("one")
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=1500)
        if done.returncode == 0:
            return json.loads(done.stdout)["runs"]
        told.append(done.stderr[-2000:])
    raise AssertionError("\n\n".join(told))


def test_a_folder_that_is_not_shared_is_refused_with_the_machines_that_do_not_see_it(cluster: Cluster) -> None:
    _all_joined(cluster)
    process = cluster.start(*RUN, "--cluster", cluster.file, "--storage", "/root/mine", "--name", "unshared")
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 3, out[-4000:]
    assert "not every machine of the cluster sees the storage" in out
    assert "node2: /root/mine" in out
    assert "node3: /root/mine" in out
    assert "node1:" not in out


def test_the_two_commands_end_in_the_frontier_of_one_machine_whatever_is_lost_on_the_way(
    one_machine: list[dict[str, Any]], cluster: Cluster
) -> None:
    lab = cluster.lab
    _all_joined(cluster)
    first = cluster.start(*RUN)
    lines: list[str] = []
    others: list[subprocess.Popen[str]] = []
    lost: list[str] = []
    events = {
        "trial 2/18 done": lambda: others.append(cluster.start(*RUN)),
        "trial 5/18 done": lambda: lost.append(_power_off_one(cluster)),
        "trial 8/18 done": lambda: _cut_off(cluster),
    }
    assert first.stdout is not None
    for line in first.stdout:
        lines.append(line)
        for text in [text for text in events if text in line]:
            events.pop(text)()
    log = "".join(lines)
    assert first.wait() == 0, log[-6000:]
    assert events == {}
    assert f"on {cluster.file} (head {cluster.head.address})" in log
    assert "started job prolu-quickstart.1" in log
    assert f"{lost[0]} is gone" in log
    # Who comes later joins the same job and sees the same end.
    told, _ = others[0].communicate(timeout=300)
    assert others[0].returncode == 0, told[-4000:]
    assert "joined job prolu-quickstart.1" in told
    assert "18 trials ended" in log
    assert "18 trials ended" in told
    answer = json.loads(cluster.run(f"{' '.join(RUN)} --json"))
    assert _results(answer["runs"]) == _results(one_machine)
    for machine in _living(cluster):
        assert list((machine.folder / "var_tmp").glob("prolu-tune-*/cache/chunks/*/*.arrow")), f"{machine.name} made no chunks"
    assert not (lab.shared / "cache").exists(), "activations went over the network"


def test_every_verb_that_reads_results_does_so_through_the_tunnel(one_machine: list[dict[str, Any]], cluster: Cluster) -> None:
    local = {run["trial"]: run for run in one_machine}
    there = f"--cluster {cluster.file}"
    status = json.loads(cluster.run(f"prolu-tune status quickstart {there} --json"))
    assert status["states"] == {"finished": 18}
    pareto = json.loads(cluster.run(f"prolu-tune pareto quickstart {there} --json"))
    assert _results(pareto["runs"]) == _results(list(local.values()))
    frontier = {run["trial"] for run in pareto["runs"] if run["run_id"] in pareto["frontier"]}
    assert frontier == {index for index, run in local.items() if run["on_frontier"]}
    best = json.loads(cluster.run(f"prolu-tune best quickstart --max-l0 60 {there} --json"))
    under = [run for run in local.values() if run["l0"] <= 60]
    assert best["runs"][0]["trial"] == min(under, key=lambda run: run["ce_degradation"])["trial"]
    cluster.run(f"prolu-tune report quickstart -o page.html {there}")
    assert b"quickstart" in (cluster.lab.laptop.folder / "root" / "project" / "page.html").read_bytes()


def test_autoencoders_are_evaluated_on_the_laptop_over_http_and_the_values_stored_there(cluster: Cluster) -> None:
    ask = f"prolu-tune evaluate quickstart --architecture prolu_ste+l1 --cluster {cluster.file} --json"
    again = json.loads(cluster.run(ask))["runs"]
    assert len(again) == 3
    # The laptop sees no shared folder: what it evaluated came through MLflow's server, and is what was trained.
    assert all(run["error"] is None and run["same"] and not run["different"] for run in again), again
    late = f"{ask} --prefix late --split 0.95:1 --num-tokens 4096 --metrics l0,ce_degradation"
    assert [sorted(run["added"]) for run in json.loads(cluster.run(late))["runs"]] == [["late.ce_degradation", "late.l0"]] * 3
    plane = f"prolu-tune pareto quickstart --x late.l0 --y late.ce_degradation --cluster {cluster.file} --json"
    assert len(json.loads(cluster.run(plane))["frontier"]) >= 1
    assert json.loads(cluster.run(f"{late} --only-missing"))["runs"] == []


def test_ray_down_leaves_nothing_running(cluster: Cluster) -> None:
    cluster.at_terminal(f"ray down {cluster.file}")
    # `ray down` stops the head; a worker's Ray ends by itself once the head has been silent for a minute.
    deadline = time.monotonic() + 180
    for machine in _living(cluster):
        while left := _ray_processes(machine):
            assert time.monotonic() < deadline, f"on {machine.name}: {left}"
            time.sleep(3)


def _ray_processes(machine: Machine) -> list[str]:
    names = [line.split()[0] for line in machine.run("ps", "-eo", "args").splitlines()]
    return [name for name in names if name.endswith(("/raylet", "/gcs_server")) or name.startswith("ray::")]


def _is_trial(name: str) -> bool:
    return name.startswith("ray::") and not name.startswith(("ray::IDLE", "ray::NodeActor"))


def _living(cluster: Cluster) -> list[Machine]:
    return [machine for machine in cluster.lab.machines if machine.outer.poll() is None]


def _power_off_one(cluster: Cluster) -> str:
    """Returns the name of the worker that was lost, one that holds a trial."""
    workers = cluster.lab.machines[1:]
    busy = [machine for machine in workers if any(_is_trial(name) for name in _ray_processes(machine))]
    machine = (busy or workers)[-1]
    machine.power_off()
    return machine.name


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
