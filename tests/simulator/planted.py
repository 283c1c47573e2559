"""Known bugs, planted one at a time into the real code while the suite runs: each has to be caught."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prolu_tune import durable
from prolu_tune.search.sampler import L0CoverageSampler
from prolu_tune.sweep import coverage_search, driver, files, journal, mlflow_writer, runner, study, tracking, trial
from prolu_tune.training import checkpoint, state
from simulator import file_plants
from simulator.faults import Fault
from simulator.file_plants import Change


@dataclass(frozen=True)
class Plant:
    """A bug: what to change, and who must catch it: the simulator, or a test that is named.

    `near`: parts of the names of failpoints, or sweeps, where it shows, `anywhere`
    for a fault at any effect; other seeds are passed over.
    """

    name: str
    changes: Callable[[], list[Change]]
    near: tuple[str, ...] = ()
    test: str | None = None

    def may_show(self, sweep: str, plan: list[Fault]) -> bool:
        """Returns whether a seed has a fault near enough."""
        places = [f"sweep {sweep}", *(fault.target or "anywhere" for fault in plan)]
        return not self.near or any(part in place for part in self.near for place in places)

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """Puts the bug into the code for a while."""
        changes = self.changes()
        old = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
        for owner, name, value in changes:
            setattr(owner, name, value)
        try:
            yield
        finally:
            for owner, name, value in old:
                setattr(owner, name, value)


def _window_ignored() -> list[Change]:
    made = coverage_search.make_sampler

    def make_sampler(space: Any) -> L0CoverageSampler:
        sampler = made(space)
        sampler.window = None
        return sampler

    return [(coverage_search, "make_sampler", make_sampler)]


def _rows_by_wall_clock() -> list[Change]:
    def log_metrics(self: Any, run: Any, metrics: Any) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = [Metric(key, float("nan") if value is None else float(value), now, step) for key, value, step in metrics]
        self._client.log_batch(run.run_id, metrics=entities)

    return [(mlflow_writer.MlflowWriter, "_log_metrics", log_metrics)]


def _no_lock() -> list[Change]:
    return [(files, "_locked", lambda file: True)]


def _shown_before_stored() -> list[Change]:
    ended = driver.SweepDriver.ended

    def early(self: Any, index: int, result: Any) -> None:
        if "result" not in self.study.entries()[index].user_attrs:
            record = driver.make_record(index, self.configs[index], result)
            self.screen.trial_ended(record, result.outcome, result.message)
        quiet, self.screen = self.screen, _Mute(self.screen)
        try:
            ended(self, index, result)
        finally:
            self.screen = quiet

    return [(driver.SweepDriver, "ended", early)]


class _Mute:
    def __init__(self, screen: Any) -> None:
        self._screen = screen

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: None) if name == "trial_ended" else getattr(self._screen, name)


def _trained_before_saved() -> list[Change]:
    """The note that training is done comes before the autoencoder's folder."""
    save_sae, store = trial.save_sae, trial._store_trained

    def early(folder: Path, *arguments: Any) -> Any:
        later: list[Callable[[], Any]] = []
        trial.save_sae = lambda *a, **o: later.append(lambda: save_sae(*a, **o))  # type: ignore[assignment] # the plant
        try:
            trained = store(folder, *arguments)
        finally:
            trial.save_sae = save_sae
        for save in later:
            save()
        return trained

    return [(trial, "_store_trained", early)]


def _checkpoint_before_last() -> list[Change]:
    by_age = checkpoint._by_age

    def older(folder: Path) -> list[Path]:
        found = by_age(folder)
        caller = sys._getframe(1).f_code.co_name
        return found[1:] or found if caller == "load_newest" else found

    return [(checkpoint, "_by_age", older)]


def _stale_rows_kept() -> list[Change]:
    append = trial.MetricsFile.append

    def keep(self: Any, row: Any) -> None:
        rows = self.rows
        self.rows = []
        lines, self._lines = self._lines, []
        del lines
        self.rows = rows
        self._lines = [durable.sealed(r) for r in rows]
        kept, self.rows = self.rows, []
        stored, self._lines = self._lines, []
        append_row = {key: value if value == value else None for key, value in row.items()}
        line = durable.sealed(append_row)
        trial.extend_file(self._path, line, at=sum(map(len, stored)))
        self.rows, self._lines = [*kept, append_row], [*stored, line]

    del append
    return [(trial.MetricsFile, "append", keep)]


def _retry_without_look() -> list[Change]:
    class Stubborn(tracking.Tracker):
        """Never lets go of its writer."""

        kept: Any = None

        @property
        def writer(self) -> Any:
            return self.kept

        @writer.setter
        def writer(self, value: Any) -> None:
            self.kept = value if value is not None else self.kept

    doubles = (mlflow_writer.MlflowWriter, "_without_doubles", lambda self, runs, *, ours=(): list(runs))
    return [(runner, "Tracker", Stubborn), doubles]


def _unfinished_forgotten() -> list[Change]:
    return [(study.SweepStudy, "unfinished", lambda self, proposer: [])]


def _ended_not_tracked_again() -> list[Change]:
    track_end = driver.SweepDriver.track_end

    def only_own(self: Any, index: int, *arguments: Any) -> None:
        if index in self.configs:
            track_end(self, index, *arguments)

    return [(driver.SweepDriver, "track_end", only_own)]


def _call_dropped() -> list[Change]:
    def once(self: Any, action: Any) -> None:
        try:
            if self.writer is None:
                self.writer = self._make_writer()
            action(self.writer)
        except Exception:  # the plant: a failed call is forgotten
            return

    return [(tracking.Tracker, "_repeat", once)]


def _end_without_waiting() -> list[Change]:
    def close(self: Any, *, timeout_s: float) -> None:
        while self.writer is None:
            time.sleep(0.1)

    return [(tracking.Tracker, "close", close)]


def _no_lease() -> list[Change]:
    inner = trial.run_trial.__wrapped__  # type: ignore[attr-defined] # set by functools.wraps

    @functools.wraps(inner)
    def alone(*arguments: Any, **options: Any) -> Any:
        files.make_folder(options["folder"])
        return inner(*arguments, **options)

    return [(trial, "run_trial", alone)]


def _stop_rule_forgotten() -> list[Change]:
    unfinished = study.SweepStudy.unfinished

    def without(self: Any, proposer: Any) -> list[Any]:
        return [study.Proposal(index=p.index, config=p.config) for p in unfinished(self, proposer)]

    return [(study.SweepStudy, "unfinished", without)]


def _frontier_only_grows() -> list[Change]:
    mark = mlflow_writer.MlflowWriter.mark_frontier

    def grown(self: Any, on_frontier: set[int]) -> None:
        found = self._search(f"tags.`prolu.sweep` = '{self._sweep}' and tags.`prolu.pareto` = 'true'")
        mark(self, on_frontier | {int(run.data.tags["prolu.trial"]) for run in found})

    return [(mlflow_writer.MlflowWriter, "mark_frontier", grown)]


def _forgets(name: str) -> list[Change]:
    """A checkpoint that lacks a part of the training's state; it is read back as it is in a fresh training."""
    load = state.Trainer.load_state_dict

    def partial(self: Any, loaded: Any, **options: Any) -> None:
        fresh = {key: tensor.clone() for key, tensor in self.state_dict().tensors.items() if name in key}
        assert fresh, f"no part of the state is named {name}"
        load(self, loaded._replace(tensors=loaded.tensors | fresh), **options)

    return [(state.Trainer, "load_state_dict", partial)]


def _checksum_unread() -> list[Change]:
    class Equal(str):
        """Equal to any checksum."""

        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

    made = checkpoint.content_digest
    return [(checkpoint, "content_digest", lambda *arguments: Equal(made(*arguments)))]


PLANTS: tuple[Plant, ...] = (
    Plant(
        "the journal is appended to without fsync",
        lambda: [(journal, "extend_file", file_plants.extend_without_fsync)],
        near=("study.journal",),
    ),
    Plant(
        "rows of metrics are appended without fsync",
        lambda: [(trial, "extend_file", file_plants.extend_without_fsync)],
        near=("trial: ",),
    ),
    Plant(
        "a file is renamed before it is synced", lambda: file_plants.replaced(file_plants.rename_before_fsync), near=("rename",)
    ),
    Plant("a file is written in place", lambda: file_plants.replaced(file_plants.in_place), near=("anywhere",)),
    Plant(
        "folders are not synced after a rename",
        file_plants.no_folder_sync,
        near=("driver: ", "trial: "),
    ),
    Plant(
        "new folders are not synced",
        file_plants.folder_without_sync,
        near=("trial: ", "driver: "),
    ),
    Plant(
        "a torn journal is not cut to its last whole record",
        lambda: [(journal, "repair_journal", lambda path: 0)],
        near=("torn",),
    ),
    Plant(
        "an append goes behind the fragment of a failed one",
        lambda: [(journal, "extend_file", file_plants.append_behind_fragments)],
        near=("truncate study.journal",),
    ),
    Plant("the search's window is ignored", _window_ignored, near=("sweep coverage", "sweep wide")),
    Plant("early stopping is forgotten at a restart", _stop_rule_forgotten, near=("sweep coverage", "sweep wide")),
    Plant("rows are stamped with the wall clock", _rows_by_wall_clock),
    Plant(
        "locks are not taken",
        _no_lock,
        near=("mlflow", "driver: "),
    ),
    Plant("a worker does not wait for a dead driver's one", _no_lease, near=("trial: ",)),
    Plant("a trial's end is shown before it is stored", _shown_before_stored, near=("study.journal",)),
    Plant(
        "training is noted as done before the autoencoder is saved",
        _trained_before_saved,
        near=("sae", "trained"),
    ),
    Plant("training goes on from the checkpoint before the last", _checkpoint_before_last, near=("trial: ",)),
    Plant("rows after the checkpoint are kept at a resume", _stale_rows_kept, near=("trial: ",)),
    Plant("a run is made again without a look for the first", _retry_without_look, near=("mlflow: create",)),
    Plant("a call that failed is forgotten", _call_dropped, near=("mlflow",)),
    Plant("unfinished trials are not taken up", _unfinished_forgotten),
    Plant(
        "half-told ends are not told",
        lambda: [(study.SweepStudy, "_finish_half_told", lambda self: None)],
        near=("study.journal",),
    ),
    Plant("ended trials are not tracked again after a restart", _ended_not_tracked_again, near=("mlflow",)),
    Plant("the sweep is done before MLflow has everything", _end_without_waiting),
    Plant("a trial never leaves the frontier", _frontier_only_grows),
    Plant(
        "the command leaves with 3 and does not say why",
        lambda: [(driver.SweepDriver, "stop_for", lambda self, reason: setattr(self, "failure", self.failure or reason))],
    ),
    Plant(
        "a checkpoint forgets Adam's moments",
        lambda: _forgets("exp_avg_sq"),
        test="tests/training/test_trainer.py::test_stopping_at_any_point_and_going_on_gives_the_same_bits",
    ),
    Plant(
        "a damaged checkpoint is believed",
        _checksum_unread,
        test="tests/training/test_checkpoint.py::test_any_flipped_byte_and_any_cut_falls_back_to_the_one_before_and_says_so",
    ),
)
