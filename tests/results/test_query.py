"""What `load_sweep` and `load_sae` answer, against what was written to a real MLflow store."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from stored_sweeps import EXP3, Store, config, measured

from prolu_tune import load_sae, load_sweep
from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.results import store
from prolu_tune.results.query import Sweep, load_sweeps
from prolu_tune.results.records import FIELDS, new_record, to_json
from prolu_tune.results.store import parse_reference, resolve_tracking_uri
from prolu_tune.sweep.mlflow_writer import MlflowWriter
from prolu_tune.sweep.study import TrialResult


@pytest.fixture(scope="module")
def exp3(stored: Store) -> Sweep:
    return load_sweep("exp3", storage=stored.storage)


def _frontier_by_hand(points: list[tuple[float, float]]) -> set[tuple[float, float]]:
    return {p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}


def test_a_sweep_is_found_by_name_run_id_and_address(stored: Store):
    run_id = stored.sweeps["exp3"]
    for reference in ("exp3", run_id, f"runs:/{run_id}", f"{stored.uri}#exp3", f"{stored.uri}#{run_id}"):
        assert load_sweep(reference, storage=stored.storage).run_id == run_id


def test_a_page_of_mlflows_ui_names_server_and_run():
    reference = parse_reference("http://host:5000/#/experiments/1/runs/" + "ab" * 16 + "/model-metrics")
    assert (reference.tracking_uri, reference.name) == ("http://host:5000", "ab" * 16)


def test_records_come_in_the_order_of_trials_with_the_fields_of_the_contract(exp3: Sweep):
    assert [record["trial"] for record in exp3.records] == list(range(17))
    assert all(tuple(record) == FIELDS for record in exp3.records)


def test_all_trials_are_read_however_small_a_page_is(stored: Store, exp3: Sweep, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "PAGE_RUNS", 4)
    assert load_sweep("exp3", storage=stored.storage).records == exp3.records


def test_the_frontier_holds_finished_trials_only_and_equal_ones_together(exp3: Sweep):
    points = [(l0, ce) for rows in EXP3.values() for _, l0, ce in rows]
    frontier = exp3.frontier()
    assert {(r["l0"], r["ce_degradation"]) for r in frontier} == _frontier_by_hand(points)
    assert all(r["state"] == "finished" and r["on_frontier"] for r in frontier)
    assert [r["trial"] for r in frontier if r["l0"] == 24.8] == [6, 11]
    assert {r["run_id"] for r in exp3.records if r["on_frontier"]} == {r["run_id"] for r in frontier}


def test_each_architecture_has_its_own_frontier(exp3: Sweep, stored: Store):
    by_architecture = exp3.frontier_by_architecture()
    assert list(by_architecture) == list(EXP3)
    assert by_architecture["relu+l1"] == [stored.runs["exp3", i] for i in (2, 1, 0)]
    assert [r["run_id"] for r in exp3.frontier(architecture="relu+l1")] == by_architecture["relu+l1"]


def test_a_score_is_maximised_and_gives_the_frontier_of_its_opposite(exp3: Sweep):
    assert [r["run_id"] for r in exp3.frontier("l0", "ce_loss_score")] == [r["run_id"] for r in exp3.frontier()]
    assert exp3.hypervolume_by_architecture("l0", "ce_loss_score")["relu+l1"] == pytest.approx(
        exp3.hypervolume_by_architecture()["relu+l1"] / 7
    )


def test_areas_are_measured_to_one_reference_for_all(exp3: Sweep):
    x, y = exp3.reference() or (0, 0)
    assert (x, y) == pytest.approx((110 + 0.1 * (110 - 6), 1.2 + 0.1 * (1.2 - 0.1)))
    rows = sorted((l0, ce) for _, l0, ce in EXP3["relu+sqrt_l1"])
    by_hand = (x - rows[0][0]) * (y - rows[0][1]) + (x - rows[1][0]) * (rows[0][1] - rows[1][1])
    assert exp3.hypervolume_by_architecture()["relu+sqrt_l1"] == pytest.approx(by_hand)


def test_the_best_run_under_a_limit_is_the_least_degraded(exp3: Sweep):
    assert [exp3.best(max_l0=limit)["trial"] for limit in (6, 20, 24.8, 1000)] == [8, 7, 6, 9]
    assert exp3.best(max_l0=5.9) is None
    assert exp3.best(50, architecture="relu+l1")["trial"] == 1
    assert [r["architecture"] for r in exp3.best_by_architecture(50)] == ["prolu_ste+l1", "prolu_relu+l1", "relu+l1"]


def test_filters_choose_by_architecture_l0_seed_metric_and_parameter(exp3: Sweep):
    def trials(**filters):
        return [r["trial"] for r in exp3.filter(**filters).records]

    assert trials(architecture="relu+sqrt_l1") == [9, 10]
    assert trials(l0=(40, 60)) == [1, 4, 10]
    assert trials(l0=(None, 7), architecture=["prolu_ste+l1", "relu+l1"]) == [8, 12, 13]
    assert trials(seed=1) == [11]
    assert trials(where="training.lr=0.5") == [15]
    assert trials(where=["ce_degradation_bos_kept<0.06", "state=finished"]) == [6, 9, 11]
    assert trials(where="sae.nonlinearity=prolu_relu") == [3, 4, 5]
    assert trials(where=["trial>=10", "state!=finished", "l0!=1"]) == [14, 15, 16]


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"architecture": "prolu_ste+l2"}, "did you mean prolu_ste+l1"),
        ({"where": "training.lrr=1"}, "did you mean training.lr"),
        ({"where": "mse"}, "--where mse: write KEY"),
        ({"where": "state<done"}, "not a number"),
    ],
)
def test_a_filter_that_cannot_hold_names_the_remedy(exp3: Sweep, filters, words):
    with pytest.raises(InputError, match=words.replace("+", r"\+")):
        exp3.filter(**filters)


def test_an_axis_that_is_not_measured_is_refused_with_the_nearest(exp3: Sweep):
    with pytest.raises(InputError, match="did you mean mse"):
        exp3.frontier("l1", "msee")
    assert exp3.frontier("l0", "ce_degradation_bos_kept")


def test_status_counts_states_and_explains_failures(exp3: Sweep, stored: Store):
    document = exp3.status()
    assert document["states"] == {"finished": 13, "stopped": 1, "failed": 1, "diverged": 1, "running": 1, "pending": 3}
    assert document["total"] == 20 == sum(document["states"].values())
    failed, diverged = document["failed"]
    assert failed["message"] == "RuntimeError: disk on fire" and failed["log"].endswith("trials/0014/error.txt")
    assert failed["run_id"] == stored.runs["exp3", 14] and diverged["state"] == "diverged"
    assert document["running"][0]["share"] == pytest.approx(0.25)
    assert document["running"][0]["l0"] == 300.0
    assert document["tokens_per_s"] == pytest.approx(1e6 / 20)
    # Three not begun and three quarters of one, 20 s each, one at a time.
    assert document["time_left_s"] == pytest.approx(3.75 * 20)
    json.loads(to_json(document), parse_constant=pytest.fail)


def test_coverage_of_a_grid_is_over_the_range_its_trials_span(exp3: Sweep):
    coverage = exp3.status()["coverage"]
    assert list(coverage) == list(EXP3)
    assert coverage["relu+l1"]["target"] == [6.0, 110.0] and coverage["relu+l1"]["bins"] == 16
    assert coverage["relu+l1"]["filled"] == 3


def test_coverage_of_a_coverage_search_is_over_its_target(stored: Store):
    # Its tag with the space is cut short: the artifact has it whole.
    coverage = load_sweep("cover", storage=stored.storage).status()["coverage"]
    # Six bins of a factor of two from 5 to 320: 6 and 7 share the first, 50 lies in the fourth, 1000 outside.
    assert coverage["relu+l1"] == {
        "target": [5.0, 320.0], "bins": 6, "filled": 2, "largest_gap": pytest.approx(0.47285, abs=1e-4)
    }  # fmt: skip
    assert coverage["prolu_ste+l1"] == {"target": [5.0, 320.0], "bins": 6, "filled": 0, "largest_gap": 1.0}


def test_a_sweep_without_trials_has_an_empty_status(stored: Store):
    document = load_sweep("bare", storage=stored.storage).status()
    assert document["runs"] == [] and document["states"] == {"pending": 4} and document["coverage"] == {}
    assert load_sweep("bare", storage=stored.storage).to_pandas().columns.tolist() == list(FIELDS)


def test_of_two_sweeps_of_one_name_the_newer_counts(stored: Store):
    assert [r["l0"] for r in load_sweep("twice", storage=stored.storage).records] == [20.0]


def test_several_sweeps_are_read_as_one(stored: Store):
    both = load_sweeps(["exp1", "exp3", "exp1"], storage=stored.storage)
    assert both.name == "exp1,exp3" and len(both.records) == 2 + 17
    points = [(10.0, 0.3), (8.0, 2.0)] + [(l0, ce) for rows in EXP3.values() for _, l0, ce in rows]
    assert {(r["l0"], r["ce_degradation"]) for r in both.frontier()} == _frontier_by_hand(points)


def test_a_frame_has_a_row_per_trial_and_on_request_every_value(exp3: Sweep):
    frame = exp3.to_pandas()
    assert frame.columns.tolist() == list(FIELDS) and len(frame) == 17
    assert str(frame["trial"].dtype) == "Int64" and frame.loc[6, "l0"] == 24.8
    wide = exp3.to_pandas(everything=True)
    assert wide.loc[15, "training.lr"] == 0.5 and wide.loc[6, "ce_degradation_bos_kept"] == pytest.approx(0.055)


def test_the_plot_has_a_point_per_placed_trial_and_a_line_per_architecture(exp3: Sweep):
    from matplotlib.figure import Figure

    axes = exp3.plot(ax=Figure().subplots())
    drawn = axes.get_lines()
    assert sum(len(line.get_xdata()) for line in drawn if line.get_linestyle() == "None") == 12
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "relu+l1", "relu+sqrt_l1", "prolu_relu+l1", "prolu_ste+l1"
    ]  # fmt: skip
    assert axes.get_xscale() == "log"


def test_a_trained_sae_is_loaded_by_run_id_folder_and_file(stored: Store):
    run_id = stored.runs["exp3", 6]
    folder = stored.storage.parent / "made" / "sae"
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    expected = load_sae(folder)(x)
    for reference in (run_id, f"runs:/{run_id}", str(folder / "sae.safetensors"), folder):
        assert torch.equal(load_sae(reference, storage=stored.storage)(x), expected)


def test_a_run_without_sae_and_an_unknown_run_are_refused(stored: Store):
    with pytest.raises(InputError, match="holds no trained SAE"):
        load_sae(stored.runs["exp3", 14], storage=stored.storage)
    with pytest.raises(InputError, match=r"no run 0{32}"):
        load_sae("0" * 32, storage=stored.storage)
    with pytest.raises(InputError, match="neither a folder"):
        load_sae("nowhere/sae", storage=stored.storage)


def test_an_unknown_sweep_names_those_that_exist(stored: Store):
    with pytest.raises(InputError, match=r"no sweep exp2 in .*there are: exp3, cover, exp1, bare, twice; did you mean exp"):
        load_sweep("exp2", storage=stored.storage)
    with pytest.raises(InputError, match="say which one"):
        load_sweep(stored.uri)
    with pytest.raises(InputError, match="is trial 6 of sweep exp3, not a sweep; write exp3"):
        load_sweep(stored.runs["exp3", 6], storage=stored.storage)
    with pytest.raises(InputError, match="there are: exp3"):
        load_sweep("f" * 32, storage=stored.storage)
    with pytest.raises(InputError, match="is not a sweep name"):
        load_sweep("x' or 1", storage=stored.storage)


def test_a_missing_store_is_refused_and_not_made(tmp_path: Path):
    with pytest.raises(InputError, match=r"run a sweep first.*--storage DIR or --tracking-uri URI"):
        load_sweep("exp3", storage=tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough to be read" * 50])
def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path: Path, content: bytes):
    file = tmp_path / "mlflow.db"
    file.write_bytes(content)
    with pytest.raises(InputError, match="is not an MLflow database"):
        load_sweep("exp3", storage=tmp_path)
    assert file.read_bytes() == content and list(tmp_path.iterdir()) == [file]


def test_a_folder_as_tracking_uri_is_refused_with_the_remedy(tmp_path: Path):
    with pytest.raises(InputError, match="or a folder with --storage"):
        load_sweep("exp3", tracking_uri=str(tmp_path))


def test_a_server_that_does_not_answer_fails_without_showing_its_password(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SurroundingsError, match="does not answer") as caught:
        load_sweep("exp3", tracking_uri="http://me:canary-secret@127.0.0.1:9")
    assert "canary-secret" not in str(caught.value)


def test_the_store_is_found_by_argument_then_environment_then_storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("PROLU_TRACKING_URI", "MLFLOW_TRACKING_URI", "PROLU_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve_tracking_uri(None, None) == f"sqlite:///{tmp_path}/prolu_runs/mlflow.db"
    monkeypatch.setenv("PROLU_STORAGE", "/data")
    assert resolve_tracking_uri(None, None) == "sqlite:////data/mlflow.db"
    assert resolve_tracking_uri(None, "/other") == "sqlite:////other/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a")
    monkeypatch.setenv("PROLU_TRACKING_URI", "http://b")
    assert resolve_tracking_uri(None, "/other") == "http://b"
    assert resolve_tracking_uri("http://c", None) == "http://c"


QUERY = """
import sys
sockets = []
sys.addaudithook(lambda event, args: sockets.append(args[1]) if event == "socket.connect" else None)
from prolu_tune import load_sweep
sweep = load_sweep("exp3", storage=sys.argv[1])
sweep.frontier(), sweep.best(max_l0=25), sweep.status()
from mlflow.telemetry import get_telemetry_client
print([m for m in ("torch", "ray", "optuna", "matplotlib") if m in sys.modules], sockets, get_telemetry_client())
"""


def test_a_query_needs_no_torch_no_ray_no_network_and_says_nothing(stored: Store):
    done = subprocess.run([sys.executable, "-c", QUERY, str(stored.storage)], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[] [] None", "")


def test_what_a_sweep_writes_is_what_a_query_reads(stored: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PROLU_EXPERIMENT", "written")
    writer = MlflowWriter(stored.uri, experiment="written", artifacts=tmp_path / "artifacts", sweep="fresh")
    writer.start_sweep({"architectures": {"prolu_ste+l1": {}}, "search": {"kind": "grid"}}, 3)
    trained = stored.storage.parent / "made" / "sae"
    results = [
        TrialResult(outcome="finished", record=dict(measured(24.8, 0.11)), checkpoint=str(trained)),
        TrialResult(outcome="failed", record={}, message="RuntimeError: disk on fire"),
    ]
    configs = [config("prolu_ste+l1", 0.1 * (1 + index)) for index in range(2)]
    for index, (trial_config, result) in enumerate(zip(configs, results, strict=True)):
        writer.start_trial(index, trial_config)
        writer.end_trial(index, trial_config, result, tmp_path / "trials" / str(index))
    writer.mark_frontier({0})
    sweep = load_sweep("fresh", storage=stored.storage)
    finished, failed = sweep.records
    made = {"run_id": finished["run_id"], "trial": 0, "state": "finished", "metrics": measured(24.8, 0.11)}
    assert finished == new_record(configs[0], **made, checkpoint=str(trained), on_frontier=True)
    assert failed["state"] == "failed" and failed["l0"] is None
    status = sweep.status()
    assert status["states"] == {"finished": 1, "failed": 1, "pending": 1}
    assert status["failed"][0]["message"] == "RuntimeError: disk on fire"
    assert status["failed"][0]["log"].endswith("error.txt")
    assert load_sae(finished["run_id"], storage=stored.storage).d_in == 8
