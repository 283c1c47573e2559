"""What is sent to a cluster, and what is refused before anything is sent."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.launch.cluster_file import read_cluster_file
from prolu_tune.launch.find import Target
from prolu_tune.launch.job import JobSpec, check_requirements
from prolu_tune.launch.submit import Request, _requirements, check_fits, job_spec, stage
from prolu_tune.search.space import load_space
from prolu_tune.sweep.settings import NodeType

from .test_cluster_file import GOOD

SPACES = Path(__file__).parents[2] / "search_spaces"


def request(name: str = "quickstart.yaml", *overrides: str, storage: str | None = None) -> Request:
    return Request(
        space_file=SPACES / name,
        space=load_space(SPACES / name, overrides=list(overrides), elsewhere=True),
        overrides=list(overrides),
        storage=storage,
        tracking_uri=None,
        fresh=False,
        retry_failed=False,
        accept_numerics=False,
    )


@pytest.fixture
def target(tmp_path: Path) -> Target:
    path = tmp_path / "c.yaml"
    path.write_text(GOOD)
    return Target("job", cluster=read_cluster_file(path), host="10.0.0.1")


def test_the_head_is_told_where_sweeps_are_kept_and_what_machines_may_come(target: Target) -> None:
    spec = job_spec(request("quickstart.yaml", "training.lr=1e-4"), target)
    assert (spec.storage, spec.tracking_uri) == ("s3://b/prolu", "http://127.0.0.1:5000")
    assert spec.node_types[0] == NodeType(name="worker", cpus=8, gpus=1, most=3)
    assert any(text.startswith("torch") for text in spec.requirements)
    assert JobSpec.from_json(spec.to_json()) == spec
    assert job_spec(request(storage="/mnt/x"), target).storage == "/mnt/x"


def test_only_code_and_the_space_travel(target: Target, tmp_path: Path) -> None:
    spec = job_spec(request("quickstart.yaml", "training.lr=1e-4"), target)
    work, package = stage(tmp_path, SPACES / "quickstart.yaml", spec)
    assert {path.name for path in work.iterdir()} == {"job.json", "quickstart.yaml"}
    kinds = {path.suffix for path in package.rglob("*") if path.is_file()}
    assert ".py" in kinds and not kinds & {".pyc", ".tmp"}
    assert sum(path.stat().st_size for path in package.rglob("*") if path.is_file()) < 10_000_000
    # What travels is enough to read the space and to know the driver, without the repository.
    code = (
        "import prolu_tune, prolu_tune.launch.job; from prolu_tune.search.space import load_space;"
        "print(prolu_tune.__file__, load_space('quickstart.yaml').name)"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(package.parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(package / "__init__.py"), "quickstart"]


def test_the_same_sweep_has_one_digest_whatever_its_budget(target: Target) -> None:
    one = request("adaptive.yaml", "search.max_trials=10").digest()
    assert one == request("adaptive.yaml", "search.max_trials=20").digest()
    assert one != request("adaptive.yaml", "training.lr=1e-4").digest()


def test_without_a_word_about_storage_nothing_is_sent() -> None:
    with pytest.raises(InputError, match=r"nothing says where http://h:8265 keeps its sweeps; give --storage"):
        job_spec(request(), Target("job", address="http://h:8265"))
    with pytest.raises(InputError, match="give a folder from / on, or a URI"):
        job_spec(request(storage="runs"), Target("job", address="http://h:8265"))


def test_a_file_of_this_machine_is_refused_and_a_path_of_theirs_is_not_looked_at(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("some text " * 100)
    with pytest.raises(InputError, match=r"activations\.dataset is text\.txt, which is on this machine"):
        job_spec(request("quickstart.yaml", "activations.dataset=text.txt"), target)
    theirs = request("quickstart.yaml", "activations.dataset=/mnt/there/text.txt")
    assert job_spec(theirs, target).overrides == ["activations.dataset=/mnt/there/text.txt"]


@pytest.mark.parametrize(("cpus", "gpus", "good"), [(1, 0.25, True), (8, 1, True), (9, 0, False), (1, 2, False), (8, 0, True)])
def test_a_trial_that_no_machine_can_hold_is_refused_with_the_numbers(
    target: Target, cpus: float, gpus: float, good: bool
) -> None:
    space = request("quickstart.yaml", f"resources.cpus_per_trial={cpus}", f"resources.gpus_per_trial={gpus}").space
    if good:
        check_fits(space, target)
        return
    with pytest.raises(InputError, match=rf"can hold a trial of {cpus:g} CPUs and {gpus:g} GPUs \(worker: 8 CPUs, 1 GPUs"):
        check_fits(space, target)


def test_packages_of_the_head_are_compared_with_what_this_version_needs() -> None:
    check_requirements(_requirements())
    with pytest.raises(SurroundingsError, match=r"ray is .* \(needed: ==1\.0\); nothing-of-that-name is missing"):
        check_requirements(["ray==1.0", "nothing-of-that-name>=2", "torch>=2", 'absent-too; python_version < "3"'])


def test_a_job_with_other_packages_ends_with_a_message_and_not_a_traceback(target: Target, tmp_path: Path) -> None:
    spec = dataclasses.replace(job_spec(request(), target), requirements=["torch==0.1"])
    work, _ = stage(tmp_path, SPACES / "quickstart.yaml", spec)
    done = subprocess.run(
        [sys.executable, "-m", "prolu_tune.launch.job"], cwd=work, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3 and done.stderr == ""
    assert '"event": "end", "exit_code": 3' in done.stdout and "torch is 2." in done.stdout
