"""A lab of namespaces in which the laptop has said `ray up cluster/local.yaml` in its copy of the repository."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
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
    project: Path
    """The laptop's working directory, as the laptop names it."""
    file: str = "cluster/local.yaml"
    """The cluster file, as a person gives it there."""

    @property
    def head(self) -> Machine:
        return self.lab.machines[0]

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Starts a command on the laptop."""
        return self.lab.laptop.start(*arguments, folder=self.project, env=env)

    def at_terminal(self, command: str, timeout_s: float = 600) -> str:
        """Returns what a command shows at a terminal of the laptop where somebody says y to what it asks."""
        line = f"echo y | script --quiet --return --command '{command}' /dev/null"
        return self.lab.laptop.run("bash", "-c", line, folder=self.project, timeout_s=timeout_s)

    def run(self, command: str, timeout_s: float = 600) -> str:
        """Returns what a line of shell prints on the laptop's standard output."""
        return self.lab.laptop.run(
            "bash", "-c", f"{command} 2> said || (cat said; false)", folder=self.project, timeout_s=timeout_s
        )


def lay_out_project(lab: Lab) -> Path:
    """Returns the laptop's working directory with `cluster/local.yaml` filled in; lays out its key and token as well.

    Beside the FILL-INs: one CPU per machine and trials on the head too; the image has the packages, so nothing is installed.
    """
    home = lab.laptop.folder / "root"
    shutil.copy(lab.key, home / ".ssh" / "id_ed25519")
    (home / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    (home / ".ray" / "auth_token").chmod(0o600)
    text = (REPOSITORY / "cluster" / "local.yaml").read_text()
    small = "--num-cpus=1 --object-store-memory=100000000"
    for old, new in {
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
    for folder in ("cluster", "search_spaces"):
        (home / "project" / folder).mkdir(parents=True)
    (home / "project" / "cluster" / "local.yaml").write_text("\n".join(lines) + "\n")
    for name in ("requirements.lock", "search_spaces/quickstart.yaml"):
        shutil.copy(REPOSITORY / name, home / "project" / name)
    return Path.home() / "project"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    with Lab(3) as lab:
        made = Cluster(lab, lay_out_project(lab))
        made.at_terminal("ray up cluster/local.yaml")
        yield made
