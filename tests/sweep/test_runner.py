"""What a person is told when a sweep cannot start, and what is left behind: real Ray, the bundled model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SPACE = Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml"
pytestmark = pytest.mark.timeout(600)


def _run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prolu_tune.cli.main", "run", str(SPACE), *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("activations.hook_name=blocks.2.hook_resid_prr", "blocks.2.hook_resid_pre"),
        ("resources.gpus_per_trial=1", "gpus_per_trial"),
        ("training.num_tokens=900_000_000", "activations.epochs"),
    ],
)
def test_what_does_not_fit_is_one_message_with_exit_code_2(setting: str, told: str, tmp_path: Path) -> None:
    done = _run(tmp_path, "--set", setting)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert told in done.stderr.splitlines()[-1]


def test_a_sweep_that_never_started_a_trial_may_be_corrected_under_its_name(tmp_path: Path) -> None:
    assert _run(tmp_path, "--set", "evaluation.num_tokens=900_000_000").returncode == 2
    # Ray starts here and joins nothing: at the address in the environment it would find nobody and end with 3.
    stray = {"RAY_ADDRESS": "127.0.0.1:1"}
    again = _run(tmp_path, "--set", "resources.cpus_per_trial=1000", "--address", "local", **stray)
    assert again.returncode == 2
    assert "resources.cpus_per_trial is 1000" in again.stderr.splitlines()[-1]


def test_a_storage_that_cannot_be_a_folder_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = _run(tmp_path, "--storage", str(tmp_path / "file" / "runs"))
    assert done.returncode == 2
    assert "--storage" in done.stderr
    assert "starting Ray" not in done.stderr
