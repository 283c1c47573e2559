"""Cluster files: what is read of them, and what is said about a wrong one."""

from pathlib import Path

import pytest

from prolu_tune.errors import InputError
from prolu_tune.launch.cluster_file import read_cluster_file
from prolu_tune.launch.find import find_target
from prolu_tune.sweep.settings import NodeType

CLUSTER = Path(__file__).parents[2] / "cluster"
GOOD = """cluster_name: gpu
provider: {type: aws, region: us-west-2}
auth: {ssh_user: ubuntu, ssh_private_key: ~/k.pem}
max_workers: 4
head_node_type: head
available_node_types:
  head: {resources: {CPU: 0}, node_config: {}}
  worker: {resources: {CPU: 8, GPU: 1}, max_workers: 3, node_config: {}}
  open: {resources: {CPU: 2}, node_config: {}}
file_mounts: {~/.ray/auth_token: TOKEN}
metadata: {prolu_tune: {storage: s3://b/prolu}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text)
    return path


def test_what_this_machine_needs_is_read(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    cluster = read_cluster_file(write(tmp_path, GOOD.replace("TOKEN", str(tmp_path / "token"))))
    assert (cluster.name, cluster.kind, cluster.ssh_user) == ("gpu", "aws", "ubuntu")
    assert cluster.ssh_key == Path("~/k.pem").expanduser() and cluster.token() == "secret"
    assert (cluster.settings.storage, cluster.settings.mlflow_port, cluster.settings.dashboard_port) == (
        "s3://b/prolu",
        5000,
        8265,
    )
    assert cluster.node_types == (
        NodeType(name="worker", cpus=8, gpus=1, most=3),
        NodeType(name="open", cpus=2, gpus=0, most=4),
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "storage: s3://b/prolu",
            "storage: prolu_runs",
            "c.yaml:11:34: metadata.prolu_tune.storage must be a folder from / on",
        ),
        ("storage:", "storge:", "metadata.prolu_tune.storge is not a key; did you mean storage?"),
        ("{storage: s3://b/prolu}", "{storage: s3://b/p, mlflow_port: 0}", "greater than or equal to 1"),
        ("metadata: {prolu_tune: {storage: s3://b/prolu}}", "", "metadata.prolu_tune is missing"),
        ("cluster_name: gpu", "cluster: gpu", "cluster_name is missing"),
        ("ssh_user: ubuntu", "ssh_user: FILL-IN-user", "c.yaml:3:18: auth.ssh_user is still FILL-IN-user; put your user there"),
        ("cluster_name: gpu", "cluster_name: [", "not YAML"),
    ],
)
def test_a_wrong_file_is_told_with_its_place(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(InputError) as told:
        read_cluster_file(write(tmp_path, GOOD.replace(old, new)))
    assert words in str(told.value)


def test_a_missing_file_and_a_missing_token_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; --cluster takes the file that was given to `ray up`"):
        find_target(None, tmp_path / "none.yaml", note=print)
    cluster = read_cluster_file(write(tmp_path, GOOD.replace("TOKEN", str(tmp_path / "none"))))
    with pytest.raises(InputError, match="ray get-auth-token --generate"):
        cluster.token()
    (tmp_path / "none").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        cluster.token()


@pytest.mark.parametrize("name", ["gpu.yaml", "gpu-gcp.yaml", "local.yaml"])
def test_files_of_this_repository_ask_for_what_only_their_owner_knows_and_then_are_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="FILL-IN") as told:
        read_cluster_file(CLUSTER / name)
    assert all(line.startswith(str(CLUSTER / name)) for line in str(told.value).splitlines())
    text = (CLUSTER / name).read_text().replace("FILL-IN-shared-folder", "/mnt/prolu").replace("FILL-IN", "mine")
    cluster = read_cluster_file(write(tmp_path, text))
    assert cluster.token_file == Path("~/.ray/auth_token").expanduser()
    assert [(kind.name, kind.cpus, kind.gpus) for kind in cluster.node_types] == (
        [] if name == "local.yaml" else [("worker", 8, 1)]
    )
