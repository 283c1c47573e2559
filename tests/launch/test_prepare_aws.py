"""cluster/prepare_aws.py against an AWS that runs here, and Ray's own preparation of the filled-in file against the same."""

import importlib.util
import json
import logging
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
import pytest
from click import Abort
from moto.server import ThreadedMotoServer

from prolu_tune.config.yaml import load_document
from prolu_tune.launch.cluster_file import read_cluster_file
from prolu_tune.launch.lint import lint_file, read_lock

from .conftest import free_port

ROOT = Path(__file__).parents[2]
MINE = "203.0.113.7/32"


@pytest.fixture(scope="module")
def aws() -> Iterator[None]:
    for name in ("werkzeug", "botocore", "boto3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-west-2",
    }.items():
        patch.setenv(name, value)
    yield
    patch.undo()
    server.stop()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare_aws", ROOT / "cluster" / "prepare_aws.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the token goes: the tests of this file share one preparation, and so one home."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch, _nowhere: None) -> None:
    monkeypatch.setenv("HOME", str(home))


@pytest.fixture(scope="module")
def prepared(aws: None, script: ModuleType, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of gpu.yaml, filled in; each call of the script costs seconds on a busy machine."""
    path = tmp_path_factory.mktemp("prepared") / "gpu.yaml"
    path.write_text((ROOT / "cluster" / "gpu.yaml").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        prepare(script, path)
    return path


@cache
def ec2() -> Any:
    """Returns a client; making one takes longer than asking it."""
    return boto3.client("ec2", region_name="us-west-2")


def prepare(script: ModuleType, path: Path, *, source: str = MINE) -> None:
    script.main(["my-bucket", "--from", source, "--image", "ami-0123456789abcdef0", "--file", str(path)])


def ingress(path: Path) -> list[dict[str, Any]]:
    (group,) = load_document(path).data["available_node_types"]["head"]["node_config"]["SecurityGroupIds"]
    (found,) = ec2().describe_security_groups(GroupIds=[group])["SecurityGroups"]
    return found["IpPermissions"]


def test_the_file_is_filled_in_good_and_readable(prepared: Path) -> None:
    assert lint_file(prepared, read_lock(ROOT / "requirements.lock")) == []
    cluster = read_cluster_file(prepared)
    assert cluster.settings.storage == "s3://my-bucket/prolu"
    token = Path("~/.ray/auth_token").expanduser()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and cluster.token() == token.read_text()
    before = (ROOT / "cluster" / "gpu.yaml").read_text().splitlines()
    changed = [line for line, old in zip(prepared.read_text().splitlines(), before, strict=True) if line != old]
    assert len(changed) == 6 and not any("FILL-IN" in line for line in changed)


def test_ssh_is_open_to_one_address_only_and_to_the_new_one_after_a_move(prepared: Path, script: ModuleType) -> None:
    def sources() -> list[str]:
        rules = ingress(prepared)
        assert [rule["FromPort"] for rule in rules if rule["IpRanges"]] == [22]
        return [entry["CidrIp"] for rule in rules for entry in rule["IpRanges"]]

    filled, token = prepared.read_text(), Path("~/.ray/auth_token").expanduser().read_text()
    assert sources() == [MINE]
    session = boto3.Session(region_name="us-west-2")
    for _ in range(2):
        script.make_group(session, "198.51.100.9/32")
        assert sources() == ["198.51.100.9/32"]
    prepare(script, prepared, source="198.51.100.10/32")
    assert sources() == ["198.51.100.10/32"]
    # A second call changes the address and nothing else.
    assert prepared.read_text() == filled and Path("~/.ray/auth_token").expanduser().read_text() == token
    with pytest.raises(SystemExit, match="give your own"):
        prepare(script, prepared, source="0.0.0.0/0")


def test_ray_leaves_the_firewall_alone_and_gives_the_machines_our_rights(prepared: Path) -> None:
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config

    before = ingress(prepared)
    resolved = bootstrap_aws(prepare_config(load_document(prepared).data))
    assert ingress(prepared) == before
    groups = ec2().describe_security_groups()["SecurityGroups"]
    assert not [group for group in groups if "0.0.0.0/0" in json.dumps(group["IpPermissions"])]
    kinds = resolved["available_node_types"]
    assert kinds["head"]["node_config"]["IamInstanceProfile"] == {"Name": "prolu-tune-head"}
    assert kinds["worker"]["node_config"]["IamInstanceProfile"] == {"Name": "prolu-tune-worker"}
    assert kinds["worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_an_unfilled_file_is_refused_by_ray_itself(aws: None, capfd: pytest.CaptureFixture[str]) -> None:
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config

    with pytest.raises((AssertionError, Abort)):  # which of them is a matter of Ray's verbosity
        bootstrap_aws(prepare_config(load_document(ROOT / "cluster" / "gpu.yaml").data))
    assert "Failed to detect a security group" in capfd.readouterr().err


def test_workers_may_use_the_bucket_and_nothing_else(prepared: Path) -> None:
    client = boto3.client("iam")
    worker = client.get_role_policy(RoleName="prolu-tune-worker", PolicyName="prolu-tune")["PolicyDocument"]
    assert {statement["Resource"] for statement in worker["Statement"]} == {
        "arn:aws:s3:::my-bucket",
        "arn:aws:s3:::my-bucket/*",
    }
    head = client.get_role_policy(RoleName="prolu-tune-head", PolicyName="prolu-tune")["PolicyDocument"]
    passed = [statement["Resource"] for statement in head["Statement"] if statement["Action"] == "iam:PassRole"]
    assert passed == [client.get_role(RoleName="prolu-tune-worker")["Role"]["Arn"]]
    shut = boto3.client("s3").get_public_access_block(Bucket="my-bucket")["PublicAccessBlockConfiguration"]
    assert set(shut.values()) == {True}
