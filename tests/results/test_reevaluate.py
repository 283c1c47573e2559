"""`results.reevaluate` on a sweep of three small autoencoders in a real MLflow store, read from its artifacts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from stored_sweeps import Store, Writer

from prolu_tune import metrics
from prolu_tune.activations.source import ActivationSource
from prolu_tune.cli.main import main
from prolu_tune.config.trial import ActivationConfig, TrialConfig
from prolu_tune.errors import InputError
from prolu_tune.evaluation import EvaluationData, evaluate_sae
from prolu_tune.results import reevaluate as module
from prolu_tune.results.query import Sweep, load_sweep
from prolu_tune.results.reevaluate import Outcome, Request, reevaluate
from prolu_tune.sae.folder import save_sae
from prolu_tune.sae.model import SparseAutoencoder

pytest_plugins = ("tiny_language_models",)
TOKENS = 20 * 16
OLD = ("l0", "mse", "ce_loss_clean", "ce_loss_with_sae", "ce_degradation")
"""What the sweep measured, in the days before the other metrics."""


class Old:
    """Finished sweeps of the same three autoencoders, one for every test, and what those measure."""

    def __init__(self, folder: Path, activations: ActivationConfig) -> None:
        self.folder, self.cache, self.name = folder, folder / "runs" / "cache", ""
        self.writer = Writer(folder / "runs")
        self.store: Store = self.writer.store
        self.client = self.writer.client
        data = EvaluationData(ActivationSource(activations, cache_dir=self.cache), num_tokens=TOKENS)
        self.configs: list[TrialConfig] = []
        self.measured: list[dict[str, float]] = []
        for index, nonlinearity in enumerate(("relu", "prolu_ste", "prolu_relu")):
            config = TrialConfig.model_validate(
                {
                    "sae": {"nonlinearity": nonlinearity, "penalty": "l1", "d_sae": 64},
                    "activations": activations.model_dump(mode="json"),
                    "evaluation": {"num_tokens": TOKENS},
                }
            )
            sae = SparseAutoencoder(config.sae, 32, 64, generator=torch.Generator().manual_seed(index))
            save_sae(sae, folder / f"sae{index}", config=config.model_dump(mode="json"), versions={}, metrics={})
            self.configs.append(config)
            self.measured.append(evaluate_sae(sae, data))

    def add_sweep(self) -> None:
        """Writes one more sweep, which the other methods are about from then on."""
        self.name = f"old{len(self.store.sweeps)}"
        self.writer.sweep(self.name, {"search": {"kind": "grid"}}, num_trials=4)
        for index, (config, measured) in enumerate(zip(self.configs, self.measured, strict=True)):
            kept = {name: measured[name] for name in OLD} | {"steps": 100.0}
            tags = {"prolu.checkpoint": "/elsewhere/sae"}
            self.writer.trial(self.name, index, config, metrics=kept, sae=self.folder / f"sae{index}", tags=tags)
        self.writer.trial(self.name, 3, self.configs[0], state="failed", metrics={})

    def run_id(self, index: int) -> str:
        return self.store.runs[self.name, index]

    def sweep(self) -> Sweep:
        return load_sweep(self.name, storage=self.store.storage)

    def run(self, request: Request, **changes: Any) -> list[Outcome]:
        """Returns what became of the runs, in order."""
        quiet: dict[str, Any] = {"say": lambda text: None, "progress": lambda *at: None}
        parts = reevaluate(self.sweep(), request, cache_dir=self.cache, device="cpu", **(quiet | changes))
        return [outcome for part in parts for outcome in part]

    def values(self, index: int) -> dict[str, list[float]]:
        """Returns every value that a run's metrics ever had."""
        names = self.client.get_run(self.run_id(index)).data.metrics
        return {name: [metric.value for metric in self.client.get_metric_history(self.run_id(index), name)] for name in names}


@pytest.fixture(scope="module")
def sweeps(gpt2_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Old:
    activations = ActivationConfig(
        model=str(gpt2_folder), hook_name="blocks.1.hook_resid_pre", dataset=str(text_file), context_length=16,
        chunk_tokens=1024, train_range=(0.0, 0.6), eval_range=(0.6, 1.0), lm_batch_size=8, lm_threads=1,
    )  # fmt: skip
    return Old(tmp_path_factory.mktemp("old"), activations)


@pytest.fixture
def old(sweeps: Old) -> Old:
    sweeps.add_sweep()
    return sweeps


def test_metrics_of_today_are_added_to_an_old_sweep_and_its_own_are_left_alone(old: Old) -> None:
    before = [old.values(index) for index in range(4)]
    outcomes = old.run(Request())
    for index, outcome in enumerate(outcomes):
        now = old.values(index)
        assert {name: now[name] for name in before[index]} == before[index]
        assert set(outcome.same) == set(OLD) and not outcome.different and outcome.error is None
        expected = {name: value for name, value in old.measured[index].items() if name not in (*OLD, "tokens")}
        assert outcome.added == pytest.approx(expected, rel=1e-6)
        assert {name: values for name, values in now.items() if name in expected} == {n: [v] for n, v in outcome.added.items()}
    assert old.values(3) == before[3] == {}
    again = old.run(Request())
    assert [o.added for o in again] == [{}] * 3 and len(again[0].same) > 15
    assert old.values(0) == {name: [values[0]] for name, values in old.values(0).items()}, "nothing is there twice"
    assert old.run(Request(only_missing=True)) == []


class Loudest:
    """A metric of next year: the largest activation of all."""

    def __init__(self) -> None:
        self.largest = 0.0

    def add(self, x: torch.Tensor, acts: torch.Tensor, recon: torch.Tensor) -> None:
        self.largest = max(self.largest, acts.max().item())

    def result(self) -> metrics.Numbers:
        return {"loudest": self.largest}


def test_a_metric_registered_later_is_computed_for_last_years_sweep(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    later = metrics.Measure(("loudest",), lambda W_dec: Loudest())
    monkeypatch.setattr(metrics, "MEASURES", [*metrics.MEASURES, later])
    monkeypatch.setattr(module, "PASS_BYTES", 2 * 8 * 32 * 64)
    told: list[str] = []
    outcomes = old.run(Request(metrics=["loudest"]), progress=lambda text, *at: told.append(text))
    assert all(list(outcome.added) == ["loudest"] and outcome.added["loudest"] > 0 for outcome in outcomes)
    assert list(dict.fromkeys(told)) == ["autoencoders to 2 of 3", "autoencoders to 3 of 3"], "two walks, no loss"
    assert old.sweep().frontier("l0", "loudest")


def test_a_run_whose_values_do_not_come_out_again_is_left_alone_and_said(old: Old) -> None:
    run_id = old.run_id(1)
    old.client.log_metric(run_id, "mse", 99.0, step=100, timestamp=2_000_000_000_000)
    before = old.values(1)
    fine, wrong, also_fine = old.run(Request(metrics=["fvu"]))
    assert wrong.different == {"mse": (99.0, pytest.approx(old.measured[1]["mse"]))} and not wrong.added
    assert wrong.error is not None and "--prefix" in wrong.error
    assert old.values(1) == before
    assert list(fine.added) == list(also_fine.added) == ["fvu"]


def test_other_rows_go_under_a_prefix_that_keeps_its_meaning(old: Old) -> None:
    request = Request(metrics=["l0", "ce_degradation"], prefix="late", split="0.8:1", num_tokens=160)
    outcomes = old.run(request)
    assert all(set(outcome.added) == {"late.l0", "late.ce_degradation"} for outcome in outcomes)
    assert outcomes[0].added["late.l0"] != old.measured[0]["l0"]
    tags = old.client.get_run(old.run_id(0)).data.tags
    assert json.loads(tags["prolu.evaluation.late"])["eval_range"] == [0.8, 1.0]
    sweep = old.sweep()
    assert sweep.frontier("late.l0", "late.ce_degradation")
    with pytest.raises(InputError, match=r"--prefix late stands for other data already \(eval_range \[0\.8, 1\.0\]\)"):
        old.run(Request(metrics=["l0"], prefix="late", split="0.7:1", num_tokens=160))
    assert [outcome.same for outcome in old.run(request)] == [["late.l0", "late.ce_degradation"]] * 3


def test_the_same_text_at_another_place_is_the_same_data_and_other_text_is_not(
    old: Old, text_file: Path, tmp_path: Path
) -> None:
    moved, other = tmp_path / "moved.jsonl", tmp_path / "other.jsonl"
    moved.write_bytes(text_file.read_bytes())
    other.write_text("".join(json.dumps({"text": f"{i * i} " * 30}) + "\n" for i in range(300)))
    assert all(outcome.added for outcome in old.run(Request(metrics=["l1"], dataset=str(moved))))
    refused = old.run(Request(metrics=["fvu"], dataset=str(other)))
    assert all(outcome.error and not outcome.added for outcome in refused)
    taken = old.run(Request(metrics=["fvu"], dataset=str(other), split="0:1", prefix="other"))
    assert all(list(outcome.added) == ["other.fvu"] for outcome in taken)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(metrics=["fvux"]), r"fvux is no metric; there are .*; did you mean fvu\?"),
        (Request(split="0.9:1"), "--split 0.9:1 makes other data; name them with --prefix"),
        (Request(num_tokens=64), "--num-tokens 64 makes other data"),
        (Request(prefix="a.b"), "--prefix a.b: a letter, then"),
        (Request(prefix="train"), "not train"),
        (Request(prefix="x", split="0.5:1"), r"reaches into the training rows \[0\.0, 0\.6\]"),
        (Request(prefix="x", split="1:0.5"), "the lower one first"),
        (Request(prefix="x", split="a:b"), "write shares of the rows as LOW:HIGH"),
        (Request(prefix="x", num_tokens=10**9), "evaluation.num_tokens is 1,000,000,000, but"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_anything_is_written(old: Old, request_: Request, message: str) -> None:
    with pytest.raises(InputError, match=message):
        old.run(request_)


def test_the_verb_answers_scripts_and_people(
    old: Old, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", *arguments, "--storage", str(old.store.storage)])
        return (int(ended.value.code or 0), *capsys.readouterr())

    old.client.delete_run(old.run_id(2))
    code, out, err = call(old.name, "--metrics", "fvu,magnitude_slope", "--json")
    document = json.loads(out)
    assert code == 0, err
    assert (document["schema"], document["metrics"]) == (1, ["fvu", "magnitude_slope"])
    assert [sorted(run["added"]) for run in document["runs"]] == [["fvu", "magnitude_slope"]] * 2
    assert document["runs"][0]["same"] == ["l0", "mse"] and f"next: prolu-tune report {old.name}" in err
    assert call(old.name, "--metrics", "fvu", "--only-missing", "--json")[0] == 0
    code, out, err = call(old.name, "--metrics", "l1", "--architecture", "relu+l1")
    assert code == 0 and "1 of 1 runs evaluated, 1 values added" in out and old.run_id(0) in out
    code, out, err = call(old.name, "--where", "mse>1e9", "--json")
    assert (code, json.loads(out)["runs"]) == (1, []) and "no finished trial meets the conditions" in err
    code, out, err = call(old.name, "--metrics", "nothing")
    assert (code, out) == (2, "") and err.count("\n") >= 1 and "Traceback" not in err
    (old.store.storage / "artifacts" / old.run_id(0)).rename(old.folder / "lost")
    code, out, err = call(old.name, "--metrics", "sqrt_l1", "--architecture", "relu+l1")
    assert code == 1 and "holds no trained SAE" in err and "0 of 1 runs evaluated" in out
