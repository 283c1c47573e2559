"""The record of a trial: one flat dictionary, the same in `--json`, in tables, in frames and on the screen.

Fields and their order are a contract with users' scripts. A value that was not measured, NaN and infinity are None.
"""

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prolu_tune.config.names import architecture_name
from prolu_tune.config.trial import TrialConfig

if TYPE_CHECKING:
    from mlflow.entities import Run

Record = dict[str, Any]
"""`FIELDS` in their order, each to a string, number, bool or None."""

SCHEMA = 1
"""Stands in every JSON document; rises when a field changes its meaning."""

METRICS: tuple[str, ...] = (
    "l0",
    "l1",
    "sqrt_l1",
    "mse",
    "fvu",
    "ce_loss_clean",
    "ce_loss_with_sae",
    "ce_loss_zero",
    "ce_degradation",
    "ce_loss_score",
    "frac_alive",
    "frac_negative_bias",
    "relative_norm",
)
"""What evaluation measures; each is a metric of the MLflow run under the same name."""

COUNTS: tuple[str, ...] = ("steps", "tokens", "wall_s")
"""What the trial used; metrics of the MLflow run as well."""

FIELDS: tuple[str, ...] = (
    "run_id",
    "trial",
    "architecture",
    "nonlinearity",
    "penalty",
    "l1_coefficient",
    "lr",
    "seed",
    "state",
    *METRICS,
    *COUNTS,
    "checkpoint",
    "on_frontier",
)

STATES: tuple[str, ...] = ("running", "finished", "stopped", "diverged", "failed", "interrupted")
"""What the tag `prolu.state` may say. Only a finished trial has comparable metrics and may be on a frontier."""

MLFLOW_INFINITY = 1.7976931348623157e308
"""What MLflow's SQL store gives back for infinity."""


def finite(value: float | str | None) -> float | None:
    """Returns the number, or None for what is no measurement: nothing, no number, NaN, infinity."""
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) and abs(number) < MLFLOW_INFINITY else None


def chosen_by(config: TrialConfig) -> Record:
    """Returns the fields by which trials of a sweep differ."""
    return {
        "architecture": config.sae.architecture,
        "nonlinearity": config.sae.nonlinearity,
        "penalty": config.sae.penalty,
        "l1_coefficient": config.training.l1_coefficient,
        "lr": config.training.lr,
        "seed": config.seed,
    }


def new_record(
    config: TrialConfig,
    *,
    run_id: str | None,
    trial: int,
    state: str,
    metrics: Mapping[str, float | None],
    checkpoint: str | None = None,
    on_frontier: bool = False,
) -> Record:
    """Returns the record of a trial whose configuration is at hand.

    Args:
        config: The trial's complete configuration.
        run_id: Its MLflow run; None before there is one.
        trial: Its index in the sweep, from 0.
        state: One of `STATES`.
        metrics: Final metrics by their bare names (`METRICS` and `COUNTS`); others are ignored, missing ones are None.
        checkpoint: Folder or URI of the trained SAE.
        on_frontier: Whether it is on the overall frontier of (l0, ce_degradation).
    """
    identity = {
        "run_id": run_id,
        "trial": trial,
        **chosen_by(config),
        "state": state,
    }
    return _record(identity, metrics, checkpoint=checkpoint, on_frontier=on_frontier)


def record_from_run(run: "Run") -> Record:
    """Returns the record of a trial's MLflow run, from its tags, parameters and latest metrics alone."""
    tags, params = run.data.tags, run.data.params
    nonlinearity, penalty = params.get("sae.nonlinearity"), params.get("sae.penalty")
    named = architecture_name(nonlinearity, penalty) if nonlinearity and penalty else None
    identity = {
        "run_id": run.info.run_id,
        "trial": _whole(tags.get("prolu.trial")),
        "architecture": tags.get("prolu.architecture", named),
        "nonlinearity": nonlinearity,
        "penalty": penalty,
        "l1_coefficient": finite(params.get("training.l1_coefficient")),
        "lr": finite(params.get("training.lr")),
        "seed": _whole(params.get("seed")),
        "state": tags.get("prolu.state", "running"),
    }
    return _record(
        identity,
        run.data.metrics,
        checkpoint=tags.get("prolu.checkpoint") or None,
        on_frontier=tags.get("prolu.pareto") == "true",
    )


def to_json(document: Mapping[str, Any]) -> str:
    """Returns the document as JSON text with `schema` in front and every NaN or infinity as null."""
    return json.dumps(_nulled({"schema": SCHEMA, **document}), allow_nan=False, indent=2, ensure_ascii=False)


def _record(identity: Record, metrics: Mapping[str, float | None], *, checkpoint: str | None, on_frontier: bool) -> Record:
    """Returns the identity completed by metrics, in the order of `FIELDS`."""
    measured: Record = {name: finite(metrics.get(name)) for name in (*METRICS, *COUNTS)}
    for name in ("steps", "tokens"):
        measured[name] = _whole(measured[name])
    record = {**identity, **measured, "checkpoint": checkpoint, "on_frontier": on_frontier}
    assert tuple(record) == FIELDS, f"fields out of order: {tuple(record)}"
    return record


def _whole(value: float | str | None) -> int | None:
    number = finite(value)
    return None if number is None else int(number)


def _nulled(value: Any) -> Any:
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, Mapping):
        return {str(key): _nulled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nulled(item) for item in value]
    return value
