"""The record of a trial, made from a configuration and read back from MLflow, and its JSON."""

import json
import math
from pathlib import Path

import pytest
from stored_sweeps import Store, config, measured

from prolu_tune.results.records import FIELDS, METRICS, finite, new_record, record_from_run, to_json

SPEC = """run_id, trial, architecture, nonlinearity, penalty, l1_coefficient, lr, seed, state, l0, l1, sqrt_l1, mse, fvu,
ce_loss_clean, ce_loss_with_sae, ce_loss_zero, ce_degradation, ce_loss_score, frac_alive, frac_negative_bias, relative_norm,
steps, tokens, wall_s, checkpoint, on_frontier"""


def _run(stored: Store, sweep: str, trial: int):
    from mlflow import MlflowClient

    return MlflowClient(stored.uri).get_run(stored.runs[sweep, trial])


def test_fields_stand_in_the_order_of_the_contract():
    assert tuple(name.strip() for name in SPEC.split(",")) == FIELDS


def test_a_record_read_from_mlflow_equals_the_one_made_from_the_configuration(stored: Store):
    made = new_record(
        config("prolu_ste+l1", 0.0922),
        run_id=stored.runs["exp3", 6],
        trial=6,
        state="finished",
        metrics=measured(24.8, 0.11),
    )
    read = record_from_run(_run(stored, "exp3", 6))
    assert read == made
    assert list(read) == list(FIELDS)
    assert [type(read[name]) for name in ("trial", "seed", "steps", "tokens", "wall_s")] == [int, int, int, int, float]


def test_values_that_are_no_measurement_are_none(stored: Store):
    diverged = record_from_run(_run(stored, "exp3", 15))
    assert diverged["state"] == "diverged"
    # MLflow stores infinity as the largest double: it must not come back as a number.
    assert diverged["l0"] is None and diverged["ce_degradation"] is None and diverged["mse"] is None
    assert diverged["steps"] == 40


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 1.7976931348623157e308, "word", ""])
def test_finite_takes_measurements_only(value):
    assert finite(value) is None
    assert finite("1e-3") == 0.001


def test_json_has_its_schema_and_null_for_nan_at_every_depth():
    text = to_json({"runs": [{"l0": math.nan}], "hypervolume": {"relu+l1": math.inf}, "reference": (1.0, math.nan), "n": 3})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "schema": 1,
        "runs": [{"l0": None}],
        "hypervolume": {"relu+l1": None},
        "reference": [1.0, None],
        "n": 3,
    }


def test_a_metric_of_the_record_that_is_not_given_is_none():
    record = new_record(config("relu+l1", 1.0), run_id=None, trial=0, state="failed", metrics={"extra": 1.0})
    assert all(record[name] is None for name in METRICS)
    assert "extra" not in record


def test_reading_records_imports_neither_mlflow_nor_torch():
    import subprocess
    import sys

    code = (
        "import sys, prolu_tune.results.records; print([m for m in ('mlflow', 'torch', 'ray', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"
