"""Where a sweep runs: the order of the ways to say it, and clusters that `ray up` has left traces of."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from prolu_tune.errors import InputError
from prolu_tune.launch.find import Target, find_target, is_raised, parse_address, raised_files, with_cached_key

from .conftest import Head, free_port
from .test_cluster_file import GOOD


@pytest.fixture(autouse=True)
def ray_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Ray's traces are looked for here instead of in /tmp."""
    folder = tmp_path / "tmp"
    (folder / "ray").mkdir(parents=True)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def silent(text: str) -> None:
    raise AssertionError(f"said {text}")


def raise_toy(head: Head, tmp_path: Path, folder: Path, name: str = "toy", **settings: object) -> Path:
    """Returns a file of cluster/ whose cluster `ray up` would have brought up."""
    (tmp_path / "cluster").mkdir(exist_ok=True)
    made = head.cluster(tmp_path, **settings)
    path = made.replace(tmp_path / "cluster" / f"{name}.yaml")
    path.write_text(path.read_text().replace("cluster_name: toy", f"cluster_name: {name}"))
    state = {"127.0.0.1": {"tags": {"ray-node-type": "head"}, "state": "running"}}
    (folder / "ray" / f"cluster-{name}.state").write_text(json.dumps(state))
    return path


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("local", Target("local")),
        ("auto", Target("ray", address="auto")),
        ("10.0.0.1:6379", Target("ray", address="10.0.0.1:6379")),
        ("http://10.0.0.1:8265/", Target("job", address="http://10.0.0.1:8265")),
    ],
)
def test_an_address_says_how_to_get_there(address: str, target: Target) -> None:
    assert parse_address(address, "--address") == target


@pytest.mark.parametrize(("address", "words"), [("ray://h:10001", "Ray Client is not used"), ("somewhere", "not an address")])
def test_an_address_that_cannot_be_is_refused(address: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_address(address, "--address")


def test_address_goes_before_ray_address_and_that_before_a_file(
    monkeypatch: pytest.MonkeyPatch, head: Head, tmp_path: Path, ray_folders: Path
) -> None:
    path = raise_toy(head, tmp_path, ray_folders)
    notes: list[str] = []
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert find_target("local", path, note=silent).kind == "local"
    assert find_target(None, path, note=notes.append) == Target("ray", address="10.0.0.1:6379")
    assert "goes before --cluster" in notes[0]
    monkeypatch.delenv("RAY_ADDRESS")
    named = find_target(None, path, note=silent)
    assert (named.kind, named.host) == ("job", "127.0.0.1") and named.cluster is not None and named.cluster.path == path


def test_a_cluster_that_was_brought_up_and_answers_is_found(head: Head, tmp_path: Path, ray_folders: Path) -> None:
    raise_toy(head, tmp_path, ray_folders)
    target = find_target(None, None, note=silent)
    assert target.kind == "job" and target.cluster is not None and target.cluster.name == "toy"


def test_one_that_does_not_answer_is_said_and_passed_over(head: Head, tmp_path: Path, ray_folders: Path) -> None:
    raise_toy(head, tmp_path, ray_folders, ssh_port=free_port())
    notes: list[str] = []
    assert find_target(None, None, note=notes.append) == Target("local")
    assert len(notes) == 1 and "is not used" in notes[0] and "ray up cluster/toy.yaml" in notes[0]


def test_two_that_answer_are_a_question(head: Head, tmp_path: Path, ray_folders: Path) -> None:
    raise_toy(head, tmp_path, ray_folders, name="one")
    raise_toy(head, tmp_path, ray_folders, name="two")
    with pytest.raises(InputError, match=r"several clusters are up \(cluster/one.yaml, cluster/two.yaml\); say which"):
        find_target(None, None, note=silent)


def test_a_cluster_that_was_taken_down_leaves_no_trace(head: Head, tmp_path: Path, ray_folders: Path) -> None:
    raise_toy(head, tmp_path, ray_folders)
    state = ray_folders / "ray" / "cluster-toy.state"
    state.write_text(state.read_text().replace("running", "terminated"))
    assert raised_files() == [] and find_target(None, None, note=silent) == Target("local")


def test_a_cloud_cluster_is_known_by_what_ray_cached_and_so_is_its_key(tmp_path: Path, ray_folders: Path) -> None:
    from prolu_tune.launch.cluster_file import read_cluster_file

    path = tmp_path / "c.yaml"
    path.write_text(GOOD.replace(", ssh_private_key: ~/k.pem", ""))
    cluster = read_cluster_file(path)
    assert not is_raised("gpu", {"type": "aws"}) and with_cached_key(cluster) == cluster
    cached = {"config": {"cluster_name": "gpu", "provider": {"type": "aws"}, "auth": {"ssh_private_key": "/k/ray.pem"}}}
    (ray_folders / "ray-config-0123").write_text(json.dumps(cached))
    (ray_folders / "ray-config-4567").write_text("torn {")
    assert is_raised("gpu", {"type": "aws"}) and not is_raised("gpu", {"type": "gcp"})
    assert with_cached_key(cluster).ssh_key == Path("/k/ray.pem")


def test_looking_for_clusters_where_there_are_none_imports_nothing_and_asks_nobody(tmp_path: Path) -> None:
    (tmp_path / "cluster").symlink_to(Path(__file__).parents[2] / "cluster")
    code = (
        "import sys, time, socket\n"
        "from prolu_tune.launch.find import find_target\n"
        "def refuse(*arguments, **others): raise AssertionError('a socket')\n"
        "socket.socket.connect = refuse\n"
        "start = time.process_time(); target = find_target(None, None, note=print); took = time.process_time() - start\n"
        "heavy = sorted({'ray', 'boto3', 'torch', 'mlflow', 'optuna'} & set(sys.modules))\n"
        "print(target.kind, heavy, took < 0.05, took)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert done.stdout.startswith("local [] True"), done.stdout
