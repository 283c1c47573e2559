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
        ("slurm.sh", "--include-dashboard=false", "--dashboard-host=0.0.0.0", "shows the dashboard"),
        # token
        ("gpu.yaml", "  ~/.ray/auth_token: ~/.ray/auth_token", "  #", "has no token"),
        ("gpu.yaml", "  - chmod 600 ~/.ray/auth_token", "  - ls", "readable for others"),
        ("gpu.yaml", "export RAY_AUTH_MODE=token; ", "", "without asking for the token"),
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
        # versions
        ("gpu.yaml", "ray:2.60.0-py311-gpu", "ray:2.59.0-py311-gpu", "but requirements.lock has ray"),
        ("gpu.yaml", "head_setup_commands: []", "head_setup_commands: [pip install mlflow==3.16.0]", "mlflow==3.16.0, but"),
        # storage
        ("gpu.yaml", "storage: s3://FILL-IN-bucket/prolu", "storage: /home/ray/prolu", "each machine's own disk"),
        ("gpu.yaml", "storage: s3://FILL-IN-bucket/prolu", "storage: prolu", "must be a folder from / on, or a URI"),
        ("gpu.yaml", "  prolu_tune:", "  other:", "metadata.prolu_tune is missing"),
        ("gpu.yaml", "-destination s3://FILL-IN-bucket", "-destination s3://another", "put them under the storage"),
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


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        # open doors
        ("serviceType: ClusterIP", "serviceType: LoadBalancer", "outside the cluster"),
        ("mlflow server --host 127.0.0.1", "mlflow server --host 0.0.0.0", "MLflow has no password"),
        # token
        ("{mode: token}", "{mode: disabled}", "asks for no token"),
        # machines
        ("nvidia.com/gpu", "nvidia.com/gpus", "write nvidia.com/gpu"),
        ("maxReplicas: 4", "maxReplicas: 0", "must ascend"),
        ("shutdownAfterJobFinishes", "shutdownAfterJobFinish", "did you mean shutdownAfterJobFinishes?"),
        ('num-cpus: "0", ', "", "lets trials run on the head"),
        ('num-cpus: "0"', 'num-cpus: "2"', "lets trials run on the head"),
        ('num-cpus: "0"', "num-cpus: 0", "num-cpus: is 0, but must be text; write it in quotation marks"),
        ("limits: {cpu: \"8\", memory: 32Gi, nvidia.com/gpu: 1}", "limits: {cpu: \"8\"}", "its limit is 0"),
        ('requests: {cpu: "2", memory: 8Gi}', 'requests: {cpu: "2", memory: 9Gi}', "memory 9Gi, but its limit is 8Gi"),
        ('requests: {cpu: 500m', "requests: {cpu: 1500m", "cpu 1500m, but its limit is 1"),
        ("memory: 32Gi", "memory: 32GB", "does not match"),
        # Kubernetes' own kinds and shapes
        ("kind: RayJob", "kind: RayCluster", "ray.io/v1 RayCluster is not checked here"),
        ("kind: RayJob", "kind: RayJobs", "kind: ray.io/v1 RayJobs is not checked here; write"),
        ("kind: RayJob\n", "", "ray.io/v1 None is not checked here"),
        ("apiVersion: ray.io/v1\n", "apiVersion: ray.io/v1alpha1\n", "ray.io/v1alpha1 RayJob is not checked here"),
        ("apiVersion: ray.io/v1\n", "", "None RayJob is not checked here"),
        ("spec:\n  #", "spce:\n  #", "spce: is not a key here; did you mean spec?"),
        ("    headGroupSpec:", "    headGroup:", "did you mean headGroupSpec?"),
        ("groupName: gpu", "groupname: gpu", "did you mean groupName?"),
        ("resources: # exp1", "resorces: # exp1", "did you mean resources?"),
        ("            containers:\n", "            container:\n", "'containers' is a required property"),
        ("        replicas: 1\n", "        replicas: one\n", "replicas: 'one' is not of type 'integer'"),
        ("    workerGroupSpecs:\n      -", "    workerGroupSpecs: []\n    suspend:\n      -", "nothing could hold a trial"),
        # versions
        ('rayVersion: "2.60.0"', 'rayVersion: "2.59.0"', "but requirements.lock has ray"),
        # storage
        ("--storage /shared/prolu", "--storage /data/prolu", "does not see /data/prolu"),
        ("--storage /shared/prolu", "", "names no --storage"),
        ("persistentVolumeClaim: {claimName: FILL-IN-claim}", "emptyDir: {}", "mount the shared claim there"),
        ("persistentVolumeClaim: {claimName: FILL-IN-claim}", "persistentVolumeClaim: {}", "ray-worker does not see"),
        ("[{name: shared, persistentVolumeClaim: {claimName: FILL-IN-claim}}]\n    w", "[]\n    w", "ray-head does not see"),
        ("claimName: FILL-IN-claim}}]\n    w", "claimName: mine}}]\n    w", "mount different claims (FILL-IN-claim, mine)"),
        ("[{name: shared, mountPath: /shared}]", "[{name: shard, mountPath: /shared}]", "mlflow does not see /shared/prolu"),
        ("mountPath: /shared}]", "mountPath: /shared, readOnly: true}]", "ray-worker mounts /shared/prolu readOnly"),
    ],
)  # fmt: skip
def test_a_bad_file_of_kuberay_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    test_a_bad_file_is_refused_and_told_how_to_mend(tmp_path, "kuberay.yaml", old, new, words)


@pytest.mark.parametrize(
    "new", ["container:", "containers: {}\n          x:", "containers: [5]\n          x:", "containers: 5\n          x:"]
)
def test_a_shape_that_the_rules_do_not_expect_is_a_complaint_too(tmp_path: Path, new: str) -> None:
    assert bad(
        tmp_path,
        "kuberay.yaml",
        "          containers:\n            - name: ray-head",
        f"          {new}\n            - name: ray-head",
    )


def test_one_mistake_is_told_once_with_its_line(tmp_path: Path) -> None:
    told = bad(tmp_path, "gpu.yaml", "cache_stopped_nodes", "cache_stoped_nodes")
    line = 1 + (CLUSTER / "gpu.yaml").read_text().splitlines().index(
        next(text for text in (CLUSTER / "gpu.yaml").read_text().splitlines() if "cache_stopped_nodes" in text)
    )
    assert len(told) == 1 and told[0].startswith(f"{tmp_path / 'gpu.yaml'}:{line}:3: ")
    assert len(bad(tmp_path, "kuberay.yaml", "groupName: gpu", "groupname: gpu")) == 1
    assert main([str(tmp_path / "gpu.yaml")]) == 1
