"""A lab of namespaces in which `ray up` has brought up a cluster from `cluster/local.yaml`."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "scripts" / "test_cluster"))

from lab import Lab, Machine  # noqa: E402 - lies outside the tests


@dataclass(frozen=True)
class Cluster:
    """A running cluster and the laptop that started it."""

    lab: Lab
    file: Path
    """The cluster file, as the laptop names it."""

    @property
    def head(self) -> Machine:
        return self.lab.machines[0]


def write_cluster_file(lab: Lab) -> Path:
    """Returns `cluster/local.yaml` filled in for the lab, and lays out the laptop's key and token.

    Beside the FILL-INs: one CPU per machine and trials on the head too; the image has the packages, so nothing is installed.
    """
    home = lab.laptop.folder / "root"
    shutil.copy(lab.key, home / ".ssh" / "id_ed25519")
    (home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    (home / ".ray" / "auth_token").chmod(0o600)
    text = (REPOSITORY / "cluster" / "local.yaml").read_text()
    small = "--num-cpus=1 --object-store-memory=100000000"
    for old, new in {
        "cluster_name: local": "cluster_name: lab",
        "FILL-IN-shared-folder": str(lab.shared),
        "FILL-IN-address-of-the-head": lab.machines[0].address,
        "FILL-IN-address-of-a-worker": ", ".join(machine.address for machine in lab.machines[1:]),
        "FILL-IN-user": "root",
        "max_workers: 1": f"max_workers: {len(lab.machines) - 1}",
        "min_workers: 1": f"min_workers: {len(lab.machines) - 1}",
        "--num-cpus=0 --num-gpus=0": small,
        "ray start --address=$RAY_HEAD_IP:6379": f"ray start --address=$RAY_HEAD_IP:6379 {small}",
    }.items():
        assert old in text, f"cluster/local.yaml no longer says {old!r}"
        text = text.replace(old, new)
    lines = [line for line in text.splitlines() if "/pip install" not in line]
    (home / "cluster.yaml").write_text("\n".join(lines) + "\n")
    return Path.home() / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    with Lab(3) as lab:
        file = write_cluster_file(lab)
        lab.laptop.run("ray", "up", "--yes", str(file), folder=REPOSITORY, timeout_s=600)
        yield Cluster(lab, file)
