"""The README's first command, end to end, in a temporary folder: real Ray, real MLflow, the bundled model."""

import json
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
SPACE = ROOT / "search_spaces" / "quickstart.yaml"
pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class Call:
    """A finished call of the command line."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.out)


def prolu_tune(*arguments: str, folder: Path) -> Call:
    """Calls the command line as a user would, off a terminal."""
    command = [sys.executable, "-m", "prolu_tune.cli.main", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return Call(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def run(folder: Path) -> Call:
    return prolu_tune("run", str(SPACE), "--json", folder=folder)


def test_it_ends_well_and_says_one_line_per_event(run: Call) -> None:
    assert run.code == 0, run.err
    assert len(run.document["runs"]) == 18
    lines = run.err.splitlines()
    assert sum(" done " in line for line in lines) >= 18
    assert len(lines) < 110, "a wall of lines"
    assert "Traceback" not in run.err
    assert "Warning" not in run.err


def test_pareto_gives_six_architectures_and_a_frontier(run: Call, folder: Path) -> None:
    answer = prolu_tune("pareto", "quickstart", "--json", folder=folder)
    assert answer.code == 0, answer.err
    assert len({trial["architecture"] for trial in answer.document["runs"]}) == 6
    assert len(answer.document["frontier_by_architecture"]) == 6
    points = {t["run_id"]: (t["l0"], t["ce_degradation"]) for t in answer.document["runs"]}
    undominated = {
        name
        for name, (l0, lost) in points.items()
        if not any(a <= l0 and b <= lost and (a, b) != (l0, lost) for a, b in points.values())
    }
    assert set(answer.document["frontier"]) == undominated
    assert {t["run_id"] for t in answer.document["runs"] if t["on_frontier"]} == undominated


def test_every_trial_is_one_mlflow_run_with_its_course_its_sae_and_the_frontier_tag(run: Call, folder: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'prolu_runs' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("prolu-tune")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    children = [r for r in runs if r.data.tags["prolu.kind"] == "trial"]
    parent = next(r for r in runs if r.data.tags["prolu.kind"] == "sweep")
    assert sorted(int(r.data.tags["prolu.trial"]) for r in children) == list(range(18))
    assert {r.info.status for r in runs} == {"FINISHED"}
    tagged = {r.info.run_id for r in children if r.data.tags.get("prolu.pareto") == "true"}
    pareto = prolu_tune("pareto", "quickstart", "--json", folder=folder).document
    assert tagged == set(pareto["frontier"])
    steps = [m.step for m in client.get_metric_history(children[0].info.run_id, "train/l0")]
    assert steps == sorted(set(steps))
    assert len(steps) >= 20
    assert {f.path for f in client.list_artifacts(children[0].info.run_id, "sae")} == {
        "sae/config.json",
        "sae/sae.safetensors",
    }
    asked = json.loads(prolu_tune("plan", str(SPACE), "--json", folder=folder).out)["trials"][0]
    assert parent.data.metrics["language_model_tokens_train"] <= 1.1 * asked["tokens"]


def test_the_winner_loads_and_reconstructs_as_well_as_its_record_says(run: Call, folder: Path) -> None:
    best = prolu_tune("best", "quickstart", "--max-l0", "1e9", "--json", folder=folder).document["runs"][0]
    from prolu_tune import load_sae

    sae = load_sae(best["checkpoint"])
    chunk = next((folder / "prolu_runs" / "cache" / "chunks").glob("*/train-*.arrow"))
    from prolu_tune.activations.arrow_files import open_mapped

    x = torch.from_numpy(open_mapped(chunk)[1][0][:4096].copy()).float()
    with torch.no_grad():
        normed, scale = sae.normalize(x)
        mse = (sae.decode(sae.encode(x)) - normed).square().mean().item()
        l0 = (sae.encode(x) > 0).float().sum(-1).mean().item()
        assert torch.allclose(sae(x), sae.decode(sae.encode(x), scale=scale), atol=1e-4)
    assert mse == pytest.approx(best["mse"], rel=0.2)
    assert l0 == pytest.approx(best["l0"], rel=0.2)


def test_the_same_command_on_a_finished_sweep_returns_at_once_with_the_same_records(run: Call, folder: Path) -> None:
    started = time.process_time(), time.monotonic()
    again = prolu_tune("run", str(SPACE), "--json", folder=folder)
    assert again.code == 0, again.err
    assert again.document["runs"] == run.document["runs"]
    assert "starting Ray" not in again.err
    assert time.monotonic() - started[1] < 60


def test_another_configuration_under_the_same_name_is_refused_and_fresh_puts_the_old_one_aside(run: Call, folder: Path) -> None:
    refused = prolu_tune("run", str(SPACE), "--set", "training.lr=1e-4", folder=folder)
    assert refused.code == 2
    assert refused.out == ""
    assert "training.lr: 0.003 then, 0.0001 now" in refused.err
    assert "--name" in refused.err and "--fresh" in refused.err


def test_status_shows_all_trials_finished(run: Call, folder: Path) -> None:
    status = prolu_tune("status", "quickstart", "--json", folder=folder)
    assert status.code == 0
    assert status.document["states"] == {"finished": 18}


def tour() -> dict[str, list[str]]:
    """Returns what the README shows below each of its commands on the quickstart's sweep, `run` itself left out."""
    shown: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in (ROOT / "README.md").read_text().splitlines():
        if match := re.fullmatch(r"    \$ prolu-tune (.*)", line):
            lines = (
                shown.setdefault(match[1], [])
                if "quickstart" in match[1] and not match[1].startswith(("run ", "plan "))
                else None
            )
        elif lines is not None and line.startswith("    "):
            lines.append(line)
        elif line:
            lines = None
    return shown


def words(line: str) -> str:
    """Returns a line without its columns' widths."""
    return " ".join(line.split())


def test_the_commands_of_the_readme_say_what_it_shows(run: Call, folder: Path) -> None:
    commands = tour()
    assert len(commands) >= 1
    with ThreadPoolExecutor(2) as pool:  # importing MLflow takes a command seconds
        calls = dict(zip(commands, pool.map(lambda c: prolu_tune(*shlex.split(c), folder=folder), commands), strict=True))
    for command, expected in commands.items():
        ended = calls[command]
        assert ended.code == 0, ended.err
        said = {words(line) for line in (ended.out + ended.err).splitlines()}
        # Numbers and ids are each machine's own; headings and sentences are not.
        promised = {
            words(line)
            for line in expected
            if line.strip() and not re.search(r"[0-9]", line.replace("L0", "").replace("l1", ""))
        }
        assert promised <= said, f"{command}: {sorted(promised - said)}"
