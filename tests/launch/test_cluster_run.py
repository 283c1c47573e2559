"""The whole way on one machine: a real Ray head, MLflow and sshd on loopback, and the command line as on a laptop. Minutes."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import Head, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent
SPACE = Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml"
SHORT = ["--set", "training.num_tokens=16384", "--set", "architectures={relu+l1: {l1_coefficient: [0.7, 1.4]}}"]


@dataclass(frozen=True)
class Cluster:
    file: Path
    folder: Path
    dashboard: int
    ray_port: int
    token: str

    def drivers(self) -> list[str]:
        """Returns the ids of the drivers and jobs that this cluster has ever seen."""
        url = f"http://127.0.0.1:{self.dashboard}/api/jobs/"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return sorted(str(job["submission_id"] or job["job_id"]) for job in json.load(answer))

    def command(self, *arguments: str, file: Path | None = None) -> list[str]:
        return [str(BIN / "prolu-tune"), *arguments, "--cluster", str(file or self.file)]

    def call(self, *arguments: str, file: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = self.command(*arguments, file=file)
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def cluster(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("c")
    ray_port, dashboard, mlflow, client, agent = (free_port() for _ in range(5))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    start = [
        *("ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={ray_port}", "--num-cpus=2"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
        f"--dashboard-agent-listen-port={agent}",
        *(f"--temp-dir={folder / 'r'}", "--object-store-memory=100000000", "--disable-usage-stats"),
    ]
    serve = [
        *("mlflow", "server", "--host", "127.0.0.1", "--port", str(mlflow), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")),
    ]
    logs = (folder / "logs").open("w")
    processes = [
        subprocess.Popen(command, env=environment, stdout=logs, stderr=logs, start_new_session=True)
        for command in (start, serve)
    ]
    try:
        _wait_for(f"http://127.0.0.1:{dashboard}/", 120)
        _wait_for(f"http://127.0.0.1:{mlflow}/health", 120)
        file = head.cluster(folder, mlflow_port=mlflow, dashboard_port=dashboard, python=sys.executable)
        file.write_text(file.read_text() + f"file_mounts: {{~/.ray/auth_token: {token}}}\n")
        yield Cluster(file, folder, dashboard, ray_port, token.read_text())
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait(timeout=60)
        logs.close()


def _wait_for(url: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer")


def test_a_sweep_runs_there_and_its_results_are_read_here(cluster: Cluster) -> None:
    done = cluster.call("run", str(SPACE), *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["runs"]) == 2
    assert "trial 2/2 done" in done.stderr and f"next: prolu-tune pareto quickstart --cluster {cluster.file}" in done.stderr
    frontier = cluster.call("pareto", "quickstart", "--json")
    assert frontier.returncode == 0, frontier.stderr
    runs = json.loads(frontier.stdout)["runs"]
    assert len(runs) == 2
    fetched = cluster.call("export", runs[0]["run_id"], "sae", "--format", "prolu")
    assert fetched.returncode == 0, fetched.stderr
    assert (cluster.folder / "sae" / "sae.safetensors").exists()
    again = cluster.call("run", str(SPACE), *SHORT)
    assert again.returncode == 0 and "trial" not in again.stderr.replace("2 trials ended", "")


def test_the_laptop_leaves_comes_back_and_stops_the_sweep_which_then_goes_on(cluster: Cluster) -> None:
    run = ["run", str(SPACE), "--name", "long"]
    # A test run in the background inherits an ignored SIGINT; the command is to see what a terminal gives it.
    with_signal = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    with subprocess.Popen(cluster.command(*run), cwd=cluster.folder, stderr=subprocess.PIPE, text=True, **with_signal) as left:
        assert left.stderr is not None
        for line in left.stderr:
            if "trial 1/18 done" in line:
                break
        left.send_signal(signal.SIGINT)
        rest = left.stderr.read()
    assert left.returncode == 130 and "the sweep goes on" in rest and f"prolu-tune stop long --cluster {cluster.file}" in rest
    other = cluster.call(*run, "--set", "training.lr=1e-4")
    assert other.returncode == 2 and "runs there with another configuration" in other.stderr
    with subprocess.Popen(cluster.command(*run), cwd=cluster.folder, stderr=subprocess.PIPE, text=True) as back:
        assert back.stderr is not None
        for line in back.stderr:
            if "done" in line:
                break
        stopped = cluster.call("stop", "long")
        seen = back.stderr.read()
    assert stopped.returncode == 0 and "has stopped" in stopped.stderr
    assert back.returncode == 130 and "stopping, saving" in seen
    final = cluster.call(*run)
    assert final.returncode == 0 and "resumed: " in final.stderr and "18 trials ended" in final.stderr


def test_a_sweep_of_this_machine_joins_no_ray_that_happens_to_run_here(cluster: Cluster, tmp_path: Path) -> None:
    before = cluster.drivers()
    environment = os.environ | {
        "RAY_ADDRESS": f"127.0.0.1:{cluster.ray_port}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(cluster.folder / "token"),
    }
    command = [str(BIN / "prolu-tune"), "run", str(SPACE), *SHORT, "--address", "local"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0 and "2 trials ended" in done.stderr, done.stderr
    assert cluster.drivers() == before
    joined = subprocess.run(
        [*command[:-2], "--name", "joined", "--storage", str(tmp_path / "j")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    # The same without --address local is what RAY_ADDRESS is for.
    assert joined.returncode == 0, joined.stderr
    assert len(cluster.drivers()) == len(before) + 1


def test_a_wrong_token_and_none_are_told_apart(cluster: Cluster) -> None:
    wrong = cluster.folder / "wrong"
    wrong.write_text("nonsense")
    file = cluster.folder / "other.yaml"
    text = cluster.file.read_text()
    file.write_text(text.replace(str(cluster.folder / "token"), str(wrong)))
    done = cluster.call("stop", "quickstart", file=file)
    assert done.returncode == 3 and f"does not accept the token in {wrong}" in done.stderr
    file.write_text(text[: text.index("file_mounts")])
    done = cluster.call("stop", "quickstart", file=file)
    assert done.returncode == 3 and "names none; add to its file_mounts" in done.stderr


def test_nothing_of_the_cluster_listens_beyond_loopback_that_answers_without_the_token(cluster: Cluster) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{cluster.dashboard}/api/jobs/")
    with pytest.raises(OSError, match="401"):
        urllib.request.urlopen(request, timeout=10)
