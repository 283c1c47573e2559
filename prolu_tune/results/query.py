"""Finished and running sweeps as MLflow knows them: `load_sweep` and `load_sae`. Needs neither torch nor Ray.

Everything is read from the tracking store alone, so it works on a server that the sweep did not run on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prolu_tune.pareto import frontier_by_group, hypervolume, pareto_frontier, reference_point
from prolu_tune.results.checkpoints import sae_folder
from prolu_tune.results.filters import StoredTrial, check_axes, select
from prolu_tune.results.records import FIELDS, Record, record_from_run
from prolu_tune.results.store import (
    find_sweep,
    open_store,
    parse_reference,
    resolve_tracking_uri,
    search_runs,
    store_errors,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from prolu_tune.sae import SparseAutoencoder

X, Y = "l0", "ce_degradation"
"""The plane of the headline: sparsity against what the language model loses."""

LARGER_IS_BETTER: frozenset[str] = frozenset({"ce_loss_score", "frac_alive", "relative_norm", "magnitude_slope"})
"""Along these axes, measured again under a prefix or not, the frontier is the upper one; along all others the lower."""


@dataclass(frozen=True)
class SweepFacts:
    """What the parent run says about a sweep as a whole."""

    name: str
    run_id: str
    tracking_uri: str
    run_status: str
    """MLflow's: RUNNING, FINISHED, KILLED, FAILED."""
    space: dict[str, Any] | None
    """The search space as it ran; None where it cannot be read."""
    num_trials: int | None
    """Trials of a grid, or the most that a coverage search may take."""


@dataclass(frozen=True)
class Sweep:
    """The trials of one sweep, or of several read together.

    `on_frontier` in its records is worked out from the trials at hand, on the plane (l0, ce_degradation).
    """

    facts: tuple[SweepFacts, ...]
    trials: tuple[StoredTrial, ...]

    @property
    def name(self) -> str:
        """The sweep's name; several are joined by commas."""
        return ",".join(facts.name for facts in self.facts)

    @property
    def run_id(self) -> str:
        """MLflow run id of the (first) sweep."""
        return self.facts[0].run_id

    @property
    def records(self) -> list[Record]:
        """One record per trial, in index order."""
        return self.flagged(self.trials, X, Y)

    def filter(
        self,
        *,
        architecture: str | Sequence[str] = (),
        l0: tuple[float | None, float | None] | None = None,
        seed: int | Sequence[int] = (),
        where: str | Sequence[str] = (),
    ) -> "Sweep":
        """Returns the sweep with those trials only that meet everything asked for.

        Args:
            architecture: One or several, such as `prolu_ste+l1`.
            l0: Lowest and highest final L0, both included.
            seed: One or several.
            where: Conditions on any field, metric or parameter, such as `training.lr=3e-4` or `mse<0.3`.

        Raises:
            InputError: if an architecture or a key occurs in no trial.
        """
        chosen = select(
            self.trials,
            architectures=[architecture] if isinstance(architecture, str) else architecture,
            l0=l0,
            seeds=[seed] if isinstance(seed, int) else seed,
            where=[where] if isinstance(where, str) else where,
        )
        return replace(self, trials=tuple(chosen))

    def placed(self, x: str = X, y: str = Y) -> list[StoredTrial]:
        """Returns the finished trials that have both values; no others can be compared.

        Raises:
            InputError: if no such thing is measured.
        """
        check_axes(self.trials, x, y)
        finished = [trial for trial in self.trials if trial.record["state"] == "finished"]
        return [trial for trial in finished if None not in self._point(trial, x, y)]

    def points(self, x: str = X, y: str = Y) -> dict[str, tuple[float, float]]:
        """Returns (x, y) by run id, of the finished trials that have both values.

        Raises:
            InputError: if no such thing is measured.
        """
        values = {trial.record["run_id"]: self._values(trial, x, y) for trial in self.placed(x, y)}
        return {run: (a, b) for run, (a, b) in values.items() if a is not None and b is not None}

    def frontier(self, x: str = X, y: str = Y, *, architecture: str | None = None) -> list[Record]:
        """Returns the records on the frontier by ascending x, of one architecture or of all together.

        Both values are to be small, but for those of `LARGER_IS_BETTER`.
        """
        placed = [t for t in self.placed(x, y) if architecture in (None, t.record["architecture"])]
        chosen = [placed[i] for i in pareto_frontier(self._point(trial, x, y) for trial in placed)]
        return [trial.record | {"on_frontier": True} for trial in chosen]

    def frontier_by_architecture(self, x: str = X, y: str = Y) -> dict[str, list[str]]:
        """Returns for each architecture the run ids on its own frontier, by ascending x."""
        placed = self.placed(x, y)
        groups = frontier_by_group(
            [self._point(trial, x, y) for trial in placed], [trial.record["architecture"] for trial in placed]
        )
        return {str(name): [placed[i].record["run_id"] for i in members] for name, members in groups.items()}

    def reference(self, x: str = X, y: str = Y) -> tuple[float, float] | None:
        """Returns the corner that hypervolumes are measured to, in the units of x and y; see `pareto.reference_point`."""
        corner = reference_point(self._point(trial, x, y) for trial in self.placed(x, y))
        return None if corner is None else (corner[0] * _direction(x), corner[1] * _direction(y))

    def hypervolume_by_architecture(self, x: str = X, y: str = Y) -> dict[str, float]:
        """Returns for each architecture the area its frontier dominates, all measured to the same `reference`."""
        placed = self.placed(x, y)
        corner = reference_point(self._point(trial, x, y) for trial in placed)
        if corner is None:
            return {}
        names = dict.fromkeys(trial.record["architecture"] for trial in placed)
        return {
            name: hypervolume([self._point(t, x, y) for t in placed if t.record["architecture"] == name], corner)
            for name in names
        }

    def best(self, max_l0: float | None = None, *, architecture: str | None = None) -> Record | None:
        """Returns the finished trial of lowest CE degradation with L0 at or under the limit; None where there is none.

        Of equal ones the sparser, then the earlier.
        """
        ranked = self.best_by_architecture(max_l0, architecture=architecture)
        return ranked[0] if ranked else None

    def best_by_architecture(self, max_l0: float | None = None, *, architecture: str | None = None) -> list[Record]:
        """Returns each architecture's best trial at or under the limit of L0, the best of all first."""
        flagged = self.flagged(self.trials, X, Y)
        usable = [record for record in flagged if record["state"] == "finished" and None not in (record[X], record[Y])]
        under = [record for record in usable if max_l0 is None or record["l0"] <= max_l0]
        best: dict[str, Record] = {}
        for record in sorted(under, key=lambda record: (record[Y], record[X], record["trial"] or 0)):
            if architecture in (None, record["architecture"]):
                best.setdefault(record["architecture"], record)
        return list(best.values())

    def flagged(self, trials: Iterable[StoredTrial], x: str = X, y: str = Y) -> list[Record]:
        """Returns the trials' records with `on_frontier` for the frontier of the whole sweep on that plane."""
        on_frontier = {record["run_id"] for record in self.frontier(x, y)}
        return [trial.record | {"on_frontier": trial.record["run_id"] in on_frontier} for trial in trials]

    def status(self) -> dict[str, Any]:
        """Returns the document of `prolu-tune status --json`: states, coverage, failures, running trials, time left."""
        from prolu_tune.results.status import status_document

        return status_document(self)

    def to_pandas(self, *, everything: bool = False) -> "pd.DataFrame":
        """Returns a row per trial: the fields of the record, and on request all metrics and parameters behind them."""
        import pandas as pd

        rows = [dict(record) for record in self.records]
        if everything:
            for row, trial in zip(rows, self.trials, strict=True):
                extra = {key: trial.value(key) for key in (*sorted(trial.metrics), *sorted(trial.params))}
                row.update({key: value for key, value in extra.items() if key not in row})
        return pd.DataFrame(rows, columns=None if rows else list(FIELDS)).convert_dtypes()

    def plot(self, x: str = X, y: str = Y, *, ax: "Axes | None" = None) -> "Axes":
        """Returns matplotlib axes with a point per finished trial and each architecture's frontier as a line."""
        from prolu_tune.results.figure import draw_plane

        points = self.points(x, y)
        architectures = {trial.record["run_id"]: trial.record["architecture"] for trial in self.placed(x, y)}
        return draw_plane(points, architectures, self.frontier_by_architecture(x, y), x=x, y=y, title=self.name, ax=ax)

    @staticmethod
    def _values(trial: StoredTrial, x: str, y: str) -> tuple[float | None, float | None]:
        values = [trial.value(key) for key in (x, y)]
        a, b = (float(value) if isinstance(value, int | float) else None for value in values)
        return a, b

    @classmethod
    def _point(cls, trial: StoredTrial, x: str, y: str) -> tuple[float | None, float | None]:
        """Returns both values with their sign turned where larger is better."""
        a, b = cls._values(trial, x, y)
        return None if a is None else a * _direction(x), None if b is None else b * _direction(y)


def load_sweep(reference: str, *, tracking_uri: str | None = None, storage: str | Path | None = None) -> Sweep:
    """Returns a sweep, running or ended, from its tracking store.

    Args:
        reference: The sweep's name, its MLflow run id, the address of its page in MLflow's UI, or a tracking URI with
            `#NAME` behind it (without it: the only sweep in that store).
        tracking_uri: MLflow server or database. None: PROLU_TRACKING_URI, MLFLOW_TRACKING_URI, or SQLite in `storage`.
        storage: Storage folder. None: PROLU_STORAGE or `./prolu_runs`.

    Raises:
        InputError: if there is no such store or sweep; names the sweeps that exist.
        SurroundingsError: if the store does not answer.
    """
    return load_sweeps([reference], tracking_uri=tracking_uri, storage=storage)


def load_sweeps(references: Sequence[str], *, tracking_uri: str | None = None, storage: str | Path | None = None) -> Sweep:
    """Returns several sweeps read together, as one; see `load_sweep`."""
    facts: list[SweepFacts] = []
    trials: list[StoredTrial] = []
    for text in references:
        reference = parse_reference(text)
        uri = reference.tracking_uri or resolve_tracking_uri(tracking_uri, storage)
        client = open_store(uri)
        parent = find_sweep(client, uri, reference.name)
        if any(parent.info.run_id == known.run_id for known in facts):
            continue
        with store_errors(uri):
            children = search_runs(client, [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
            facts.append(_facts(client, uri, parent))
        runs = [run for run in children if run.data.tags.get("prolu.kind") == "trial"]
        trials += sorted((_stored_trial(run) for run in runs), key=lambda trial: trial.record["trial"] or 0)
    return Sweep(tuple(facts), tuple(trials))


def load_sae(
    reference: str | Path, *, tracking_uri: str | None = None, storage: str | Path | None = None
) -> "SparseAutoencoder":
    """Returns a trained autoencoder on the CPU: `sae.encode(x)`, `sae.decode(acts)`, `sae(x)` on raw activations.

    Args:
        reference: Folder of an SAE, its `sae.safetensors`, or the MLflow run id of a trial (`runs:/ID` as well).
        tracking_uri: As in `load_sweep`; for a run id only.
        storage: As in `load_sweep`.

    Raises:
        InputError: if there is no such folder or run, or it holds no usable SAE.
        SurroundingsError: if the store does not answer.
    """
    from prolu_tune.sae.folder import load_sae_folder

    with sae_folder(reference, tracking_uri=tracking_uri, storage=storage) as folder:
        return load_sae_folder(folder)


def _facts(client: "MlflowClient", uri: str, parent: "Run") -> SweepFacts:
    from prolu_tune.results.status import read_space

    tags = parent.data.tags
    planned = tags.get("prolu.num_trials", "")
    return SweepFacts(
        name=tags.get("prolu.sweep") or parent.info.run_name or parent.info.run_id,
        run_id=parent.info.run_id,
        tracking_uri=uri,
        run_status=parent.info.status,
        space=read_space(client, parent),
        num_trials=int(planned) if planned.isdigit() else None,
    )


def _stored_trial(run: "Run") -> StoredTrial:
    return StoredTrial(
        record=record_from_run(run),
        metrics=dict(run.data.metrics),
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        label=run.info.run_name or run.info.run_id,
    )


def _direction(axis: str) -> int:
    return -1 if axis.rpartition(".")[2] in LARGER_IS_BETTER else 1
