"""Each rule about cluster files has a file that breaks it; the files of this repository break none."""

from pathlib import Path

import pytest

from prolu_tune.launch.lint import lint_file, main, open_blanks, read_lock

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LOCK = read_lock(ROOT / "requirements.lock")
FILES = sorted(path for path in CLUSTER.iterdir() if path.suffix in (".yaml", ".sh"))


def bad(folder: Path, name: str, old: str, new: str) -> list[str]:
    """Returns what is said about a file of the repository after one change."""
    text = (CLUSTER / name).read_text()
    assert old in text, f"{name} has no {old}"
    path = folder / name
    path.write_text(text.replace(old, new))
    return lint_file(path, LOCK)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_files_of_this_repository_are_good(path: Path) -> None:
    assert lint_file(path, LOCK) == []


def test_make_lint_cluster_passes_here_and_names_what_is_to_be_filled_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main([]) == 0
    out = capsys.readouterr().out
    assert {f"cluster/{path.name}: good" for path in FILES} <= set(out.splitlines())
    assert "put your security group there" in out
    assert len(open_blanks(CLUSTER / "gpu.yaml")) == (CLUSTER / "gpu.yaml").read_text().count("FILL-IN-")


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        # Ray's own schema
        ("gpu.yaml", "max_workers: 4 #", "max_workers: many #", "Ray refuses it"),
        ("gpu.yaml", "head_node_type: head", "head_node_type: hat", "Ray refuses the file"),
        ("gpu.yaml", "file_mounts:", "file_mount:", "Ray refuses it"),
        ("local.yaml", "worker_ips:", "workers:", "Ray refuses the file"),
        # provider
        ("gpu.yaml", "cache_stopped_nodes", "cache_stoped_nodes", "provider.cache_stoped_nodes: is not a key of provider aws"),
        ("gpu.yaml", "cache_stopped_nodes", "cache_stoped_nodes", "did you mean cache_stopped_nodes?"),
        ("gpu.yaml", "type: aws", "type: awz", "did you mean aws?"),
        ("gpu.yaml", "  region: us-west-2", "  #", "provider.region: is missing"),
        ("gpu-gcp.yaml", "project_id:", "projectid:", "did you mean project_id?"),
        # open doors
        ("gpu.yaml", "SecurityGroupIds: [sg-FILL-IN-security-group] #", "#", "lets ssh in from everywhere"),
        (
            "gpu.yaml",
            "  cache_stopped_nodes: false",
            "  security_group: {IpPermissions: [{FromPort: 8265, ToPort: 8265, IpRanges: [{CidrIp: 0.0.0.0/0}]}]}",
            "lets the whole world in (0.0.0.0/0)",
        ),
        ("gpu-gcp.yaml", "subnetworks/prolu-tune", "subnetworks/default", "default network, which lets ssh in from everywhere"),
        ("gpu.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "shows the dashboard on 0.0.0.0"),
        ("gpu.yaml", "--dashboard-host=127.0.0.1", "", "shows the dashboard on an address of its own choice"),
        ("gpu.yaml", "mlflow server --host 127.0.0.1", "mlflow server --host 0.0.0.0", "MLflow has no password"),
        ("gpu.yaml", "mlflow server --host 127.0.0.1", "mlflow server", "MLflow has no password"),
        ("gpu.yaml", "'127.0.0.1:*,localhost:*'", "'*'", "any web page could talk to MLflow"),
        ("kuberay.yaml", "serviceType: ClusterIP", "serviceType: LoadBalancer", "outside the cluster"),
        ("kuberay.yaml", "mlflow server --host 127.0.0.1", "mlflow server --host 0.0.0.0", "MLflow has no password"),
        ("slurm.sh", "--include-dashboard=false", "--dashboard-host=0.0.0.0", "shows the dashboard"),
        # token
        ("gpu.yaml", "  ~/.ray/auth_token: ~/.ray/auth_token", "  #", "has no token"),
        ("gpu.yaml", "  - chmod 600 ~/.ray/auth_token", "  - ls", "readable for others"),
        ("gpu.yaml", "export RAY_AUTH_MODE=token; ", "", "without asking for the token"),
        ("kuberay.yaml", "{mode: token}", "{mode: disabled}", "asks for no token"),
        ("slurm.sh", "RAY_AUTH_MODE=token", "", "without RAY_AUTH_MODE=token"),
        ("gpu.yaml", "export RAY_AUTH_MODE=token;", f"export RAY_AUTH_MODE=token X={'0123abcd' * 8};", "secret seems to be"),
        ("gpu.yaml", "sqlite:////home/ray/mlflow/mlflow.db", "postgresql://me:word@db/mlflow", "secret seems to be written"),
        # machines
        ("gpu.yaml", "InstanceType: g5.2xlarge", "InstanceType: g5.2xlrage", "did you mean g5."),
        ("gpu.yaml", "InstanceType: g5.2xlarge", "InstanceType: g5.12xlarge", "GPU is 1, but g5.12xlarge has 4"),
        ("gpu.yaml", "InstanceType: g5.2xlarge", "InstanceType: m6i.2xlarge", "GPU is 1, but m6i.2xlarge has 0"),
        ("gpu.yaml", "resources: {CPU: 8, GPU: 1}", "resources: {}", "is empty; say what the machine has"),
        ("gpu.yaml", "resources: {CPU: 0, GPU: 0}", "resources: {CPU: 2}", "lets trials run on the head"),
        ("gpu.yaml", "--num-cpus=0", "--num-cpus=2", "lets trials run on the head"),
        ("gpu.yaml", "idle_timeout_minutes: 5", "idle_timeout_minutes: 600", "so that idle machines are given back"),
        ("gpu-gcp.yaml", "machineType: g2-standard-8", "machineType: g2-standard-9", "did you mean g2-standard-"),
        (
            "gpu-gcp.yaml",
            "machineType: g2-standard-8",
            "machineType: n1-standard-8\n      guestAccelerators: [{acceleratorType: nvidia-tesla-t5, acceleratorCount: 1}]",
            "nvidia-tesla-t5 is not a GPU for n1",
        ),
        ("kuberay.yaml", "nvidia.com/gpu", "nvidia.com/gpus", "write nvidia.com/gpu"),
        ("kuberay.yaml", "maxReplicas: 4", "maxReplicas: 0", "must ascend"),
        ("kuberay.yaml", "shutdownAfterJobFinishes", "shutdownAfterJobFinish", "did you mean shutdownAfterJobFinishes?"),
        # versions
        ("gpu.yaml", "ray:2.60.0-py311-gpu", "ray:2.59.0-py311-gpu", "but requirements.lock has ray"),
        ("kuberay.yaml", 'rayVersion: "2.60.0"', 'rayVersion: "2.59.0"', "but requirements.lock has ray"),
        ("gpu.yaml", "head_setup_commands: []", "head_setup_commands: [pip install mlflow==3.16.0]", "mlflow==3.16.0, but"),
        # storage
        ("gpu.yaml", "storage: s3://FILL-IN-bucket/prolu", "storage: /home/ray/prolu", "each machine's own disk"),
        ("gpu.yaml", "storage: s3://FILL-IN-bucket/prolu", "storage: prolu", "must be a folder from / on, or a URI"),
        ("gpu.yaml", "  prolu_tune:", "  other:", "metadata.prolu_tune is missing"),
        ("gpu.yaml", "-destination s3://FILL-IN-bucket", "-destination s3://another", "put them under the storage"),
        ("kuberay.yaml", "--storage /shared/prolu", "--storage /data/prolu", "does not see /data/prolu"),
        ("kuberay.yaml", "--storage /shared/prolu", "", "names no --storage"),
        # what belongs together
        ("gpu.yaml", "mlflow_port: 5000", "mlflow_port: 5001", "uses port 5000, but metadata.prolu_tune.mlflow_port is 5001"),
        ("gpu.yaml", "dashboard_port: 8265", "dashboard_port: 8266", "uses port 8265, but metadata.prolu_tune.dashboard_port"),
        ("local.yaml", "RAY_enable_autoscaler_v2=0;", "X=1;", "no worker would ever join"),
        ("gpu.yaml", "--autoscaling-config=~/ray_bootstrap_config.yaml", "", "starts no worker"),
        ("gpu.yaml", "mlflow server --host", "mlflow sever --host", "start no MLflow server"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_and_told_how_to_mend(tmp_path: Path, name: str, old: str, new: str, words: str) -> None:
    told = bad(tmp_path, name, old, new)
    assert any(words in line for line in told), told
    assert all(line.startswith(str(tmp_path / name)) for line in told)


def test_one_mistake_is_told_once_with_its_line(tmp_path: Path) -> None:
    told = bad(tmp_path, "gpu.yaml", "cache_stopped_nodes", "cache_stoped_nodes")
    line = 1 + (CLUSTER / "gpu.yaml").read_text().splitlines().index(
        next(text for text in (CLUSTER / "gpu.yaml").read_text().splitlines() if "cache_stopped_nodes" in text)
    )
    assert len(told) == 1 and told[0].startswith(f"{tmp_path / 'gpu.yaml'}:{line}:3: ")
    assert main([str(tmp_path / "gpu.yaml")]) == 1
