"""`plan`: lists every trial, says what it costs, what could not be checked, and where each value comes from."""

import json
from pathlib import Path

import pytest

from prolu_tune.cli.main import main

SPACES = Path(__file__).parents[2] / "search_spaces"
COVERAGE = """\
name: cover
activations: {model: gpt2, hook_name: blocks.6.hook_resid_pre}
architectures:
  relu+l1: {l1_coefficient: {low: 1e-3, high: 1e2}}
  prolu_ste+l1: {l1_coefficient: {low: 1e-4, high: 1e1}}
search: {kind: coverage, l0: [5, 200], bins: 16, max_trials: 40}
"""


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """Returns (standard output, standard error) of a `plan` that succeeds."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    return out, err


def test_experiment_3_lists_its_30_runs_without_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = plan(capsys, str(SPACES / "exp3.yaml"), "--json")
    document = json.loads(out)
    assert document["schema"] == 1 and document["num_trials"] == len(document["trials"]) == 30
    found: dict[str, list[float]] = {}
    for trial in document["trials"]:
        found.setdefault(trial["architecture"], []).append(trial["l1_coefficient"] / 768)
        assert (trial["tokens"], trial["steps"], trial["d_in"], trial["d_sae"]) == (402_653_184, 97_904, 768, 12_288)
    factors = {
        "relu+l1": 3,
        "prolu_relu+l1": 3,
        "prolu_ste+l1": 0.3,
        "relu+sqrt_l1": 2,
        "prolu_relu+sqrt_l1": 2,
        "prolu_ste+sqrt_l1": 2,
    }
    assert set(found) == set(factors)
    for architecture, coefficients in found.items():
        assert sorted(coefficients) == pytest.approx([4e-4 * factors[architecture] * 1.5**i for i in range(5)])
    assert "next: prolu-tune run" in err


def test_the_text_names_every_trial_and_every_cost(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = plan(capsys, str(SPACES / "exp3.yaml"))
    rows = [line.split() for line in out.splitlines() if "+" in line]
    assert len(rows) == 30 and sorted(int(row[0]) for row in rows) == list(range(30))
    assert ["18", "relu+l1", "0.9216", "0.001", "0"] in rows and ["28", "prolu_ste+l1", "0.46656", "0.001", "0"] in rows
    for words in ("30 trials, 6 architectures", "402,653,184 tokens", "memory", "disk", "time", "an estimate"):
        assert words in out


def test_values_come_from_default_file_and_flag(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(SPACES / "exp3.yaml")
    out, _ = plan(capsys, path, "-v", "--set", "training.batch_size=2048", "--name", "again")
    origin = {
        line.split()[0]: line.split("  ")[-1].strip() for line in out.splitlines() if line.startswith(("training.", "name"))
    }
    assert origin["training.lr"].startswith(f"{path}:11:") and origin["training.adam_betas"] == "default"
    assert origin["training.batch_size"] == "--set training.batch_size=2048" and origin["name"] == "--name again"
    out, _ = plan(capsys, path, "-v", "--json")
    assert json.loads(out)["values"]["resources.gpus_per_trial"]["value"] == 0.25


def test_an_unknown_model_leaves_the_plan_and_says_what_is_unchecked(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = plan(capsys, str(SPACES / "exp3.yaml"), "--set", "activations.model=some-one/some-model", "--json")
    document = json.loads(out)
    assert len(document["trials"]) == 30 and document["trials"][0]["d_sae"] is None
    assert document["estimate"]["wall_s"] is None
    assert "note: not checked, since config.json of some-one/some-model cannot be had here" in err


def test_what_this_machine_lacks_is_a_note_and_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = plan(capsys, str(SPACES / "exp3.yaml"), "--set", "resources.cpus_per_trial=100000")
    assert "a trial needs 100000 CPU" in err
    _, err = plan(capsys, str(SPACES / "exp1.yaml"), "--set", "activations.cache_gb=1e9", "--set", "training.num_tokens=1e15")
    assert "of disk are needed" in err


def test_a_coverage_search_shows_ranges_and_the_most_it_may_take(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "cover.yaml"
    path.write_text(COVERAGE)
    out, _ = plan(capsys, str(path))
    assert "at most 40 trials" in out and "16 bins of L0 from 5 to 200" in out and "prolu_ste+l1  0.0001 to 10" in out
    document = json.loads(plan(capsys, str(path), "--json")[0])
    assert document["trials"] == [] and document["num_trials"] == 40
    assert document["estimate"]["tokens"] == 40 * 402_653_184


def test_a_coverage_search_is_simulated_and_told_as_a_range(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "cover.yaml"
    path.write_text(COVERAGE.replace("bins: 16, max_trials: 40", "bins: 8, max_trials: 60"))
    document = json.loads(plan(capsys, str(path), "--json")[0])
    expected, most = document["expected"], document["estimate"]
    for name in ("trials", "cost", "filled", "tokens", "wall_s"):
        assert expected[name]["low"] <= expected[name]["middle"] <= expected[name]["high"], name
    # Two architectures of eight bins: hardly fewer trainings than bins, and not half as many again.
    assert expected["cost"]["low"] > 13 and expected["cost"]["high"] < 24 and expected["filled"]["middle"] > 0.9
    assert expected["wall_s"]["high"] < most["wall_s"] and expected["tokens"]["high"] < most["tokens"]
    assert expected["tokens"]["middle"] == round(expected["cost"]["middle"]) * 402_653_184
    assert document["price"] is None
    out, _ = plan(capsys, str(path))
    assert "expected     " in out and "whole ones" in out and "at most      24," in out


def test_a_price_per_hour_gives_dollars_of_gpu_hours(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "cover.yaml"
    path.write_text(COVERAGE.replace("bins: 16, max_trials: 40", "bins: 4, max_trials: 30"))
    gpu = ("--set", "resources.gpus_per_trial=0.25", "--price-per-hour", "2.5")
    document = json.loads(plan(capsys, str(path), "--json", *gpu)[0])
    price = document["price"]
    assert (price["usd_per_hour"], price["hour_of"]) == (2.5, "one GPU") and "assumed" in price["step_time"]
    gpus = max(1, document["machine"]["num_gpus"])
    assert price["most"]["usd"] == pytest.approx(2.5 * gpus * document["estimate"]["wall_s"] / 3600)
    assert price["expected"]["low"]["usd"] == pytest.approx(2.5 * gpus * document["expected"]["wall_s"]["low"] / 3600)
    assert price["expected"]["low"]["usd"] <= price["expected"]["high"]["usd"] < price["most"]["usd"]
    out, _ = plan(capsys, str(SPACES / "exp3.yaml"), "--price-per-hour", "2.5")
    assert "price        about $" in out and "at $2.50 an hour of one GPU; step time assumed" in out
    grid = json.loads(plan(capsys, str(SPACES / "quickstart.yaml"), "--json", "--price-per-hour", "0.4")[0])["price"]
    assert grid["expected"] is None and grid["hour_of"] == "this machine" and "measured here" in grid["step_time"]
    unknown = ("--set", "activations.model=some-one/some-model", "--price-per-hour", "1")
    assert "price        not known" in plan(capsys, str(SPACES / "exp3.yaml"), *unknown)[0]


def test_a_negative_price_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(SPACES / "exp3.yaml"), "--price-per-hour", "-1"])
    assert ended.value.code == 2 and "--price-per-hour" in capsys.readouterr().err
