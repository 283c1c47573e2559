"""Sweeps in a real MLflow store on SQLite, as `sweep.mlflow_writer` writes them; the fixture `stored`, made once a process."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from prolu_tune.config.trial import TrialConfig
from prolu_tune.results.quiet import quiet_mlflow
from prolu_tune.screen.words import trial_label

quiet_mlflow()

EXPERIMENT = "prolu-tune"


@dataclass
class Store:
    """A tracking store, and the run ids of what was written to it by (sweep, trial)."""

    storage: Path
    uri: str
    sweeps: dict[str, str] = field(default_factory=dict)
    runs: dict[tuple[str, int], str] = field(default_factory=dict)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return flat


def config(architecture: str, coefficient: float, seed: int = 0, **training: Any) -> TrialConfig:
    nonlinearity, penalty = architecture.split("+")
    return TrialConfig.model_validate(
        {
            "seed": seed,
            "sae": {"nonlinearity": nonlinearity, "penalty": penalty},
            "training": {"l1_coefficient": coefficient, "num_tokens": 1_000_000, **training},
        }
    )


class Writer:
    """Writes invented sweeps with MLflow's client."""

    def __init__(self, storage: Path) -> None:
        from mlflow import MlflowClient

        storage.mkdir(parents=True, exist_ok=True)
        self.store = Store(storage, f"sqlite:///{storage / 'mlflow.db'}")
        self.client = MlflowClient(self.store.uri)
        self.experiment = self.client.create_experiment(EXPERIMENT, artifact_location=(storage / "artifacts").as_uri())
        self._clock = 1_700_000_000_000

    def sweep(
        self, name: str, space: dict[str, Any], *, num_trials: int | None, status: str = "FINISHED", cut: bool = False
    ) -> str:
        """Returns the id of a new parent run; `cut` leaves only the start of the space in its tag."""
        text = json.dumps(space)
        tags = {"prolu.kind": "sweep", "prolu.sweep": name, "prolu.schema": "1", "prolu.space": text[:40] if cut else text}
        if num_trials is not None:
            tags["prolu.num_trials"] = str(num_trials)
        run_id = self._create(name, tags)
        self.client.log_dict(run_id, space, "space.json")
        self._end(run_id, status)
        self.store.sweeps[name] = run_id
        return run_id

    def trial(
        self,
        sweep: str,
        index: int,
        trial_config: TrialConfig,
        *,
        state: str = "finished",
        metrics: Mapping[str, float],
        tags: Mapping[str, str] | None = None,
        sae: Path | None = None,
    ) -> str:
        """Returns the id of a new child run."""
        from mlflow.entities import Metric, Param

        label = trial_label(trial_config.sae.architecture, trial_config.training.l1_coefficient, trial_config.seed)
        all_tags = {
            "mlflow.parentRunId": self.store.sweeps[sweep],
            "prolu.kind": "trial",
            "prolu.sweep": sweep,
            "prolu.trial": str(index),
            "prolu.architecture": trial_config.sae.architecture,
            "prolu.state": state,
            **(tags or {}),
        }
        run_id = self._create(label, all_tags)
        params = [Param(key, value) for key, value in flatten(trial_config.model_dump(mode="json")).items()]
        step = int(metrics.get("steps", 0))
        self.client.log_batch(
            run_id, params=params, metrics=[Metric(key, value, self._clock + step, step) for key, value in metrics.items()]
        )
        if sae is not None:
            self.client.log_artifacts(run_id, str(sae), "sae")
        if state != "running":
            self._end(run_id, "FINISHED" if state in ("finished", "stopped") else "FAILED")
        self.store.runs[sweep, index] = run_id
        return run_id

    def _create(self, name: str, tags: dict[str, str]) -> str:
        self._clock += 1000
        return self.client.create_run(self.experiment, start_time=self._clock, run_name=name, tags=tags).info.run_id

    def _end(self, run_id: str, status: str) -> None:
        if status != "RUNNING":
            self.client.set_terminated(run_id, status=status)


def measured(l0: float, ce: float) -> dict[str, float]:
    """Returns the metrics of a trial that ended, all but two of them by rule."""
    by_rule = {"l0": l0, "l1": 2 * l0, "sqrt_l1": 3 * l0, "mse": 1 / l0, "ce_degradation": ce, "ce_loss_with_sae": 3.5 + ce}
    by_rule |= {"ce_loss_score": 1 - ce / 7, "ce_degradation_bos_kept": ce / 2, "train/l0": l0}
    fixed = {"fvu": 0.1, "ce_loss_clean": 3.5, "ce_loss_zero": 10.5, "frac_alive": 0.9, "frac_negative_bias": 0.8}
    return by_rule | fixed | {"relative_norm": 0.95, "steps": 240, "tokens": 1e6, "wall_s": 20.0}


EXP3: dict[str, list[tuple[float, float, float]]] = {
    # (coefficient, L0, degradation)
    "relu+l1": [(0.9216, 100.0, 0.20), (1.3824, 40.0, 0.50), (2.0736, 15.0, 1.20)],
    "prolu_relu+l1": [(0.9216, 90.0, 0.15), (1.3824, 45.0, 0.30), (2.0736, 20.0, 0.90)],
    "prolu_ste+l1": [(0.0922, 24.8, 0.11), (0.1382, 12.0, 0.40), (3.2e-4, 6.0, 1.00)],
    "relu+sqrt_l1": [(0.6144, 110.0, 0.10), (0.9216, 60.0, 0.25)],
}
GRID_SPACE = {"name": "exp3", "architectures": {name: {} for name in EXP3}, "search": {"kind": "grid"}}


def write_exp3(writer: Writer, sae: Path) -> None:
    """Eleven finished trials and every kind of trap: better values that must not count."""
    writer.sweep("exp3", GRID_SPACE, num_trials=20, status="RUNNING")
    index = 0
    for architecture, rows in EXP3.items():
        for coefficient, l0, ce in rows:
            first = architecture == "prolu_ste+l1" and l0 == 24.8
            writer.trial("exp3", index, config(architecture, coefficient), metrics=measured(l0, ce), sae=sae if first else None)
            index += 1
    writer.trial("exp3", 11, config("prolu_ste+l1", 0.0922, seed=1), metrics=measured(24.8, 0.11))
    writer.trial("exp3", 12, config("prolu_ste+l1", 9.0), metrics=measured(7.0, math.nan))
    writer.trial("exp3", 13, config("relu+l1", 9.0), state="stopped", metrics=measured(1.0, 0.0))
    tags = {"prolu.message": "RuntimeError: disk on fire", "prolu.log": "/far/away/sweeps/exp3/trials/0014/error.txt"}
    writer.trial("exp3", 14, config("relu+l1", 8.0), state="failed", metrics={}, tags=tags)
    lost = {"prolu.message": "the loss is NaN at step 40"}
    diverged = {"l0": math.inf, "ce_degradation": math.nan, "steps": 40}
    writer.trial("exp3", 15, config("relu+l1", 7.0, lr=0.5), state="diverged", metrics=diverged, tags=lost)
    rows = {"train/tokens": 250_000.0, "train/l0": 300.0, "train/loss": 12.5}
    writer.trial("exp3", 16, config("relu+l1", 6.0), state="running", metrics=rows)


def write_store(storage: Path, sae: Path) -> Store:
    """Returns a store with the sweeps exp3, cover, exp1, bare and two of the name twice."""
    writer = Writer(storage)
    write_exp3(writer, sae)
    search = {"kind": "coverage", "l0": [5.0, 320.0], "bins": 6, "max_trials": 200}
    architectures = {"relu+l1": {}, "prolu_ste+l1": {}}
    writer.sweep("cover", {"architectures": architectures, "search": search}, num_trials=200, status="KILLED", cut=True)
    for index, l0 in enumerate((6.0, 7.0, 50.0, 1000.0)):
        writer.trial("cover", index, config("relu+l1", 1.0 + index), metrics=measured(l0, 1 / l0))
    writer.sweep("exp1", {"search": {"kind": "grid"}}, num_trials=2)
    writer.trial("exp1", 0, config("relu+l1", 0.2304), metrics=measured(10.0, 0.3))
    writer.trial("exp1", 1, config("relu+l1", 0.4608, lr=3e-4), metrics=measured(8.0, 2.0))
    writer.sweep("bare", {}, num_trials=4, status="RUNNING")
    for l0 in (30.0, 20.0):
        writer.sweep("twice", {}, num_trials=1)
        writer.trial("twice", 0, config("relu+l1", 1.0), metrics=measured(l0, 0.5))
    return writer.store


@cache
def _store(root: Path) -> Store:
    import torch

    from prolu_tune.config.trial import SaeConfig
    from prolu_tune.sae import SparseAutoencoder
    from prolu_tune.sae.folder import save_sae

    generator = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(SaeConfig(nonlinearity="prolu_ste"), 8, 16, generator=generator)
    folder = save_sae(sae, root / "made" / "sae", config={"sae": {"nonlinearity": "prolu_ste"}}, versions={}, metrics={})
    return write_store(root / "storage", folder)


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of invented sweeps; read it only."""
    return _store(tmp_path_factory.getbasetemp() / "stored-sweeps")
