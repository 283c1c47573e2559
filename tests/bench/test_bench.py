"""Every measurement runs at a small size and tells what it should; other libraries are not needed here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prolu_tune.bench import all as everything
from prolu_tune.bench import crossover, evaluate, step, stream, trial
from prolu_tune.bench.__main__ import NAMES
from prolu_tune.bench.peers import client
from prolu_tune.errors import InputError, SurroundingsError

BENCH = Path(step.__file__).parent


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def options(kind, made, **changes):
    """The defaults of a measurement's flags, changed."""
    parsed = made.parse_args([], namespace=kind())
    for name, value in ({"threads": 1, "clock": "cpu"} | changes).items():
        assert hasattr(parsed, name), name
        setattr(parsed, name, value)
    return parsed


def test_every_measurement_has_a_name_and_every_name_a_measurement():
    helpers = {"__init__", "__main__", "options", "source"}
    assert {path.stem for path in BENCH.glob("*.py")} - helpers == set(NAMES)


def test_step_and_trial_import_neither_ray_nor_mlflow_nor_a_language_model():
    heavy = "{'ray', 'mlflow', 'transformers', 'transformer_lens', 'datasets', 'optuna', 'prolu_tune.activations'}"
    code = (
        f"import sys; from prolu_tune.bench import memory, step, trial; sys.exit(repr({heavy} & set(sys.modules)) != 'set()')"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_step_is_measured_beside_its_dense_twin_and_the_one_product():
    result = step.measure(options(step.StepOptions, step.parser(), d_in=32, d_sae=512, batch=256, l0=8.0, steps=2))
    assert result["l0"] == pytest.approx(8, rel=0.2)
    for name, over in (("dense_over_sparse", "dense_s_per_step"), ("sparse_over_product", None)):
        top, bottom = (over, "s_per_step") if over else ("s_per_step", "product_s")
        assert result[name] == pytest.approx(result[top] / result[bottom])
    assert result["tokens_per_s"] == pytest.approx(256 / result["s_per_step"])


def test_a_trial_becomes_sparse_on_its_way_and_ends_where_the_dense_one_does():
    asked = options(
        trial.TrialOptions, trial.parser(), d_in=16, d_sae=1024, batch=1024, l0=4.0, steps=60, l1_coefficient=4.0, lr=3e-3
    )
    result = trial.measure(asked)
    assert 0 < result["first_sparse_step"] < 60
    assert 0 < result["sparse_steps"] < result["dense_steps_made"] == 60
    assert result["l0"] == pytest.approx(result["dense_l0"], rel=0.02)
    assert result["loss"] == pytest.approx(result["dense_loss"], rel=0.01)


def test_dense_steps_that_are_not_made_are_reckoned_from_those_that_are():
    asked = options(trial.TrialOptions, trial.parser(), d_in=16, d_sae=256, batch=256, l0=4.0, steps=200, dense_share=0.3)
    result = trial.measure(asked)
    assert 40 <= result["dense_steps_made"] <= 80
    assert result["dense_over_sparse"] == pytest.approx(result["dense_s"] / result["s"])


def test_our_evaluation_finds_the_losses_of_three_passes_each():
    made = evaluate.parser()
    result = evaluate.measure(options(evaluate.EvaluateOptions, made, tokens=1024, d_sae=64, l0=8.0, saes=2, rounds=1))
    # The activations are cached in float16.
    assert result["ce_loss_with_sae"] == pytest.approx(result["naive_ce_loss_with_sae"], rel=1e-4)
    assert result["naive_over_ours"] == pytest.approx(result["naive_s"] / result["s"])


def test_the_stream_is_read_faster_than_it_is_made():
    result = stream.measure(options(stream.StreamOptions, stream.parser(), tokens=4096, batch=512, rounds=1))
    assert result["tokens"] >= 4096
    assert result["read_tokens_per_s"] > result["chunks_made_tokens_per_s"]
    assert result["whole_over_to_hook"] > 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a peak can be set back on Linux only")
def test_the_memory_of_a_training_is_measured_through_dense_and_sparse_steps():
    batch, d_in, d_sae = 1024, 32, 4096
    command = [sys.executable, "-m", "prolu_tune.bench", "memory", "--json"]
    shape = ["--d-in", str(d_in), "--d-sae", str(d_sae), "--batch", str(batch)]
    result = json.loads(subprocess.run([*command, *shape], capture_output=True, text=True, check=True).stdout)
    assert result["array_bytes"] == 4 * batch * d_sae
    assert result["paths"].split()[0] == "dense"
    assert result["paths"].split().count("sparse") >= 7
    assert result["peak_bytes"] > result["weights_and_adam_bytes"]
    assert result["peak_over_allowed"] == pytest.approx(result["peak_bytes"] / result["allowed_bytes"])


def test_where_dense_and_sparse_cross_is_read_off_the_measured_points():
    points = [(0.0, 0.2), (0.1, 0.6), (0.2, 1.4)]
    assert crossover._first_above(points, 1.0) == pytest.approx(0.15)
    assert crossover._at(points, 0.05) == pytest.approx(0.4)
    assert crossover._first_above([(0.001, 1.2), (0.1, 2.0)], 1.0) == 0.0


def test_a_shape_that_cannot_be_read_is_refused():
    with pytest.raises(InputError, match="'256x32', which must read batch x d_in x d_sae"):
        crossover._shape("256x32")


def test_a_density_that_no_autoencoder_has_is_refused():
    with pytest.raises(InputError, match="--l0 must lie between 0 and --d-sae 64, got 64"):
        step.measure(options(step.StepOptions, step.parser(), d_sae=64, l0=64.0))


def test_an_unknown_measurement_is_answered_with_the_known_ones():
    done = subprocess.run([sys.executable, "-m", "prolu_tune.bench", "speed"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("'speed' is no measurement; write python -m prolu_tune.bench NAME with one of all, ")


def test_without_their_environment_it_is_said_how_to_install_the_other_libraries(monkeypatch, tmp_path):
    monkeypatch.setattr(client, "PYTHON", tmp_path / "bin" / "python")
    with pytest.raises(InputError, match="install it with make peers"):
        step.measure(options(step.StepOptions, step.parser(), d_in=8, d_sae=64, batch=16, l0=4.0, peers=True))


def test_a_peer_answers_lines_and_one_that_dies_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(client, "PYTHON", Path(sys.executable))
    script = tmp_path / "echo.py"
    script.write_text(
        "import json, sys\nprint('a library says hello')\nprint(json.dumps({'version': '1'}), flush=True)\n"
        "for line in sys.stdin:\n    print(json.dumps({'seconds': json.loads(line)['batch']}), flush=True)\n"
    )
    with client.Peer(str(script), [], threads=1) as peer:
        assert peer.ready == {"version": "1"}
        assert [peer.ask({"batch": number})["seconds"] for number in (3, 1)] == [3, 1]
    script.write_text("raise SystemExit('no such model')")
    with pytest.raises(SurroundingsError, match="no such model"):
        client.Peer(str(script), [], threads=1)


def test_the_table_leaves_empty_what_was_not_measured():
    results = {"step, small": {"s_per_step": 0.5, "dense_over_sparse": 4.0, "sparse_over_product": 1.25}}
    assert everything.table(results)[2] == "| step, small | 0.5 | 4 |  |  | 1.25 |"


@pytest.mark.slow
def test_the_pauses_of_a_sweep_and_its_drivers_time_are_measured():
    made = subprocess.run(
        [sys.executable, "-m", "prolu_tune.bench", "overhead", "--trials", "2", "--json"], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    result = json.loads(made.stdout)
    assert 0 < result["pause_s"] <= result["longest_pause_s"]
    assert 0 < result["driver_cpu_s_per_trial"] == pytest.approx(60 * result["share_of_a_minute"])
