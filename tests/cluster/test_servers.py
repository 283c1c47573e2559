"""Tracking on a real PostgreSQL behind MLflow's server, files on a real S3 server: a sweep, a kill, the query."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SPACE = Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml"
SMALL = ["--set", "training.num_tokens=32768", "--set", "evaluation.num_tokens=2048", "--set", "training.checkpoint_every_s=1"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _wait(condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which s3://sweeps is a bucket of an S3 server on this machine."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    env = {
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret-canary",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    boto3.client(
        "s3", endpoint_url=env["AWS_ENDPOINT_URL"], aws_access_key_id="id", aws_secret_access_key="x", region_name="us-east-1"
    ).create_bucket(Bucket="sweeps")
    yield env
    server.stop()


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of an empty database of a PostgreSQL of our own, on a port and in a folder of its own."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed; scripts/test_cluster/install.sh does that")
    folder = Path(f"/tmp/prolu-postgres-{os.getpid()}")
    folder.mkdir()
    shutil.chown(folder, "postgres", "postgres")
    (folder / "password").write_text("canary-password")
    (folder / "password").chmod(0o644)
    port = _free_port()

    def as_postgres(*command: str) -> None:
        subprocess.run(["runuser", "-u", "postgres", "--", *command], check=True, capture_output=True, cwd="/")

    data = str(folder / "data")
    as_postgres(str(programs[-1] / "initdb"), "-D", data, "-A", "scram-sha-256", "--pwfile", str(folder / "password"), "-N")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    as_postgres(str(programs[-1] / "pg_ctl"), "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql+psycopg2://postgres:canary-password@127.0.0.1:{port}/postgres"
    finally:
        as_postgres(str(programs[-1] / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def mlflow_server(postgres: str, s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of MLflow's server on that database, with artifacts in the bucket."""
    port = _free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", postgres, "--artifacts-destination", "s3://sweeps/artifacts", "--serve-artifacts"]
    log = (tmp_path_factory.mktemp("mlflow") / "log").open("wb")
    server = subprocess.Popen(command, env={**os.environ, **s3}, stdout=log, stderr=log, start_new_session=True)

    def answers() -> bool:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200
        except OSError:
            return False

    try:
        _wait(answers, "MLflow's server does not start", timeout_s=300)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _prolu_tune(folder: Path, env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "prolu_tune.cli.main", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _kill_at(process: subprocess.Popen[str], text: str) -> str:
    lines = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if text in line:
            process.kill()
            process.communicate()
            return "".join(lines)
    raise AssertionError("".join(lines))


def test_a_sweep_whose_head_is_lost_goes_on_elsewhere_with_nothing_twice(
    mlflow_server: str, postgres: str, s3: dict[str, str], tmp_path: Path
) -> None:
    run = ["run", str(SPACE), "--storage", "s3://sweeps/prolu", "--tracking-uri", mlflow_server, *SMALL, "--json"]
    first = _prolu_tune(tmp_path, s3 | {"PROLU_SCRATCH": str(tmp_path / "head1")}, *run)
    log = _kill_at(first, "trial 4/18 done")
    (tmp_path / "head1").rename(tmp_path / "lost")
    # The other head has another disk, and finds everything in the bucket and on the server.
    second = _prolu_tune(tmp_path, s3 | {"PROLU_SCRATCH": str(tmp_path / "head2")}, *run)
    out, more = second.communicate(timeout=1200)
    assert second.returncode == 0, more[-6000:]
    assert "resumed: " in more
    records = json.loads(out)["runs"]
    assert [record["trial"] for record in records] == list(range(18))
    assert {record["state"] for record in records} == {"finished"}
    asked = _prolu_tune(tmp_path, s3, "pareto", "quickstart", "--tracking-uri", mlflow_server, "--json")
    answer = json.loads(asked.communicate(timeout=300)[0])
    assert len(answer["runs"]) == 18
    assert set(answer["frontier"]) == {record["run_id"] for record in records if record["on_frontier"]}
    _check_database(postgres)
    _check_artifacts(mlflow_server, records[0]["run_id"], tmp_path)
    for secret in ("secret-canary", "canary-password"):
        assert secret not in log + more


def _check_database(uri: str) -> None:
    """One run per trial, one row per (run, key, step), straight from the tables."""
    import psycopg2

    connection = psycopg2.connect(uri.replace("+psycopg2", ""))
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT value, count(*) FROM tags WHERE key = 'prolu.trial' GROUP BY value")
        assert sorted((int(value), count) for value, count in cursor.fetchall()) == [(i, 1) for i in range(18)]
        cursor.execute("SELECT count(*) FROM metrics")
        rows = cursor.fetchone()
        cursor.execute("SELECT count(*) FROM (SELECT DISTINCT run_uuid, key, step FROM metrics) AS one")
        assert rows == cursor.fetchone()
        assert rows is not None and rows[0] > 1000
    connection.close()


def _check_artifacts(tracking_uri: str, run_id: str, folder: Path) -> None:
    """A trained autoencoder comes back from the bucket through the server, whole."""
    code = (
        "import sys, mlflow; mlflow.artifacts.download_artifacts(run_id=sys.argv[1], artifact_path='sae', dst_path=sys.argv[2])"
    )
    env = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri}
    subprocess.run([sys.executable, "-c", code, run_id, str(folder / "got")], env=env, check=True)
    from prolu_tune import load_sae

    assert load_sae(str(folder / "got" / "sae")).d_sae == 512


def test_the_driver_may_write_to_postgresql_itself_and_never_shows_its_password(
    postgres: str, s3: dict[str, str], tmp_path: Path
) -> None:
    small = [*SMALL, "--name", "direct", "--set", "architectures={relu+l1: {l1_coefficient: [1]}}"]
    env = s3 | {"MLFLOW_TRACKING_URI": postgres, "PROLU_EXPERIMENT": "direct", "PROLU_SCRATCH": str(tmp_path / "scratch")}
    process = _prolu_tune(tmp_path, env, "run", str(SPACE), "--storage", str(tmp_path / "runs"), *small)
    out, log = process.communicate(timeout=900)
    assert process.returncode == 0, log[-4000:]
    assert "canary-password" not in out + log
    kept = [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and b"canary-password" in path.read_bytes()]
    assert kept == []
    assert list((tmp_path / "runs" / "artifacts").glob("*/artifacts/sae/sae.safetensors"))
    assert not (tmp_path / "mlruns").exists()
