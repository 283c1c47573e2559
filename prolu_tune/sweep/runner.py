"""Runs a sweep from start to end, or from wherever the last attempt ended.

lock -> study -> (MLflow in a thread) -> Ray -> node servers -> Tune over the study's trials -> frontier
"""

import contextlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.samplers import BaseSampler

from prolu_tune.durable import replace_file, sealed
from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.results.places import local_storage, storage_uri
from prolu_tune.results.records import Record
from prolu_tune.results.store import experiment_name, resolve_tracking_uri
from prolu_tune.screen.screen import Screen
from prolu_tune.search.space import SearchSpace
from prolu_tune.sweep.driver import SweepDriver, frontier_trials, sweep_records
from prolu_tune.sweep.files import SweepFolder, SweepLock, read_stored, surroundings_error
from prolu_tune.sweep.mlflow_writer import MlflowWriter
from prolu_tune.sweep.settings import Machines, NodeType
from prolu_tune.sweep.signals import StopSignals
from prolu_tune.sweep.study import GridProposer, Proposer, SweepStudy
from prolu_tune.sweep.tracking import Tracker

if TYPE_CHECKING:
    from prolu_tune.sweep.mirror import SweepMirror

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""Tracking URIs of these have no server that would know a place for artifacts; they go into the storage folder."""
TRACKER_CLOSE_S = 60.0
"""How long the end of a sweep waits for MLflow before it says that values are still on disk."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a person asked for besides the space."""

    retry_failed: bool
    accept_numerics: bool
    restart: Callable[[], None] | None


@dataclass(frozen=True, kw_only=True)
class SweepOutcome:
    """How `run_sweep` ended."""

    exit_code: int
    """0 done, 1 some trials failed, 3 the surroundings failed, 130 interrupted."""
    sweep: str
    records: list[Record]
    message: str | None = None


def run_sweep(
    space: SearchSpace,
    *,
    storage: Path | str,
    tracking_uri: str | None = None,
    address: str | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    accept_numerics: bool = False,
    screen: Screen,
    node_types: Sequence[NodeType] = (),
    restart: Callable[[], None] | None = None,
) -> SweepOutcome:
    """Runs or continues a sweep.

    Args:
        storage: A folder that all machines see, or the URI of a bucket.
        accept_numerics: Trials may go on from checkpoints that were made with other numerics; their runs are tagged.
        restart: Puts a new process with the same command in the place of this one, for when Ray's own processes die.
        node_types: What the autoscaler of the cluster at `address` may still start.

    Raises:
        InputError: the space does not fit the model, the data, the machine, or the sweep stored under its name.
        SurroundingsError: disk, Ray or tracking failed before the first trial; nothing is lost.
    """
    bucket, storage = storage_uri(storage), local_storage(storage)
    folder = SweepFolder.of(storage, space.name)
    folder.create()
    lock = SweepLock(folder)
    mirror = None if bucket is None else _mirror(folder, bucket)
    try:
        lock.acquire()
        if mirror:
            mirror.take()
        uri = resolve_tracking_uri(tracking_uri, storage)
        if fresh:
            lock.release()
            _archive(folder, space.name, lambda: _writer(uri, storage, space.name))
            folder.create()
            lock.acquire()
            if mirror:
                mirror.begin_anew()
        machines = Machines(address, tuple(node_types))
        wishes = Wishes(retry_failed=retry_failed, accept_numerics=accept_numerics, restart=restart)
        return _run_locked(
            space, folder, storage=storage, uri=uri, mirror=mirror, machines=machines, wishes=wishes, screen=screen
        )
    except OSError as error:
        raise surroundings_error(error, folder.root) from error
    finally:
        if mirror:
            with contextlib.suppress(SurroundingsError):  # `_conclude` has told
                mirror.release()
        lock.release()


def _run_locked(
    space: SearchSpace,
    folder: SweepFolder,
    *,
    storage: Path,
    uri: str,
    mirror: "SweepMirror | None",
    machines: Machines,
    wishes: Wishes,
    screen: Screen,
) -> SweepOutcome:
    proposer, sampler = _search(space)
    study = SweepStudy(folder, space.name, sampler=sampler)
    _check_identity(space, folder, started=bool(study.entries()))
    if study.torn_bytes:
        screen.note(f"a crash cut off the study's last record; its {study.torn_bytes} bytes are set aside, no result is lost")
    retried = study.retry(["failed"]) if wishes.retry_failed else []
    total, results = proposer.total(study.optuna_study), study.results()
    marker = folder.root / "tracked"
    if not retried and len(results) == total and marker.exists():
        return _finish(screen, space.name, sweep_records(study, _int_keys(read_stored(marker)["runs"])), None)
    marker.unlink(missing_ok=True)
    tracker = Tracker(lambda: _writer(uri, storage, space.name), note=screen.note)
    driver = SweepDriver(space.name, folder, study, proposer, tracker, screen, mirror=mirror)
    driver.accept_numerics, driver.restart = wishes.accept_numerics, wishes.restart
    with StopSignals(driver):
        if mirror:
            mirror.start(driver.stop_for, screen.note)
        try:
            _announce(space, driver, total)
            tracker.call(lambda writer: writer.start_sweep(space.to_json(), total))
            configs = study.configs()
            for index, result in results.items():
                driver.track_end(index, configs[index], result)
            if len(results) != total:
                _run_trials(space, driver, storage=storage, machines=machines)
        except (InputError, SurroundingsError):
            tracker.call(lambda writer: writer.end_sweep("FAILED", {}))
            with contextlib.suppress(SurroundingsError):
                tracker.close(timeout_s=TRACKER_CLOSE_S)
            raise
        finally:
            screen.stop()
        return _conclude(driver, marker)


def _announce(space: SearchSpace, driver: SweepDriver, total: int | None) -> None:
    """Shows what the sweep is, and what earlier drivers left of it."""
    records = sweep_records(driver.study, {})
    unfinished = len(driver.study.unfinished(driver.proposer))
    driver.screen.start(
        space.name,
        list(space.architectures),
        total=total,
        done=len(records),
        l0_range=getattr(space.search, "l0", None),
        records=records,
    )
    if records or unfinished:
        left = "" if total is None else f", {total - len(records) - unfinished} to go"
        driver.screen.note(f"resumed: {len(records)} done, {unfinished} to go on with{left}")


def _search(space: SearchSpace) -> tuple[Proposer, BaseSampler | None]:
    """Returns what proposes the trials of a space, and the sampler that its study needs."""
    if space.search.kind == "grid":
        return GridProposer(space), None
    # Imported here: SciPy takes a second on a busy machine, which a second driver's refusal would wait for.
    from prolu_tune.sweep.coverage_search import CoverageProposer

    proposer = CoverageProposer(space)
    return proposer, proposer.sampler


def _mirror(folder: SweepFolder, bucket: str) -> "SweepMirror":
    """Imported here, because a sweep in a folder needs none of it."""
    from prolu_tune.sweep.mirror import SweepMirror

    return SweepMirror(folder, bucket)


def _run_trials(space: SearchSpace, driver: SweepDriver, *, storage: Path, machines: Machines) -> None:
    """Everything with Ray in it; imported here, because a finished sweep needs none of it."""
    from prolu_tune.sweep.tuning import run_trials

    run_trials(space, driver, storage=storage, machines=machines)


def _conclude(driver: SweepDriver, marker: Path) -> SweepOutcome:
    """Marks the frontier, waits for MLflow, shows the end."""
    total = driver.proposer.total(driver.study.optuna_study)
    complete = len(driver.study.results()) == total
    records = driver.records()
    frontier = frontier_trials(records)
    driver.tracker.call(lambda writer: writer.mark_frontier(frontier))
    status = "FINISHED" if complete else "KILLED"
    totals = driver.metrics | {"num_ended": float(len(records)), **driver.proposer.metrics(driver.study.optuna_study)}
    driver.tracker.call(lambda writer: writer.end_sweep(status, totals))
    try:
        driver.tracker.close(timeout_s=TRACKER_CLOSE_S)
    except SurroundingsError as error:
        driver.stop_for(str(error))
    records = driver.records()
    if complete and driver.failure is None:
        assert driver.tracker.writer is not None
        runs = {str(i): run.run_id for i, run in driver.tracker.writer.tracked.children.items()}
        replace_file(marker, [sealed({"runs": runs})])
        driver.folder.remove_scratch()
    if driver.mirror:
        try:
            driver.mirror.release()
        except SurroundingsError as error:
            driver.stop_for(str(error))
    if driver.refused and driver.failure is None:
        driver.failure = "; ".join(f"trial {index} does not go on: {why}" for index, why in sorted(driver.refused.items()))
    exit_code = 3 if driver.failure else 130 if driver.stopping else None
    return _finish(driver.screen, driver.name, records, exit_code, driver.failure)


def _finish(
    screen: Screen, name: str, records: list[Record], exit_code: int | None, message: str | None = None
) -> SweepOutcome:
    """Shows the result and the command that comes next."""
    failed = [record for record in records if record["state"] == "failed"]
    on_frontier = [record["trial"] for record in records if record["on_frontier"]]
    if exit_code is None:
        exit_code = 1 if failed else 0
    following = [f"prolu-tune pareto {name}", f"prolu-tune best {name} --max-l0 25"]
    if failed:
        following.insert(0, f"prolu-tune status {name}")
    if exit_code in (3, 130):
        following = ["the same command again goes on where this one stopped"]
    screen.finish(records, on_frontier, following)
    return SweepOutcome(exit_code=exit_code, sweep=name, records=records, message=message)


def _check_identity(space: SearchSpace, folder: SweepFolder, *, started: bool) -> None:
    """Refuses to continue a sweep with another configuration, and notes the space. A sweep without a trial may change."""
    identity = json.loads(json.dumps(space.identity()))
    if started and folder.space_file.exists():
        stored = read_stored(folder.space_file)["identity"]
        if stored != identity:
            raise InputError(
                f"a sweep named {space.name} exists with another configuration ({_differences(stored, identity)}); "
                "give this one another name with --name, or start anew with --fresh (the old one is kept aside)"
            )
    replace_file(folder.space_file, [sealed({"identity": identity, "space": space.to_json()})])


def _differences(stored: dict[str, Any], now: dict[str, Any]) -> str:
    """Returns the first few keys that differ, with both values."""
    from prolu_tune.sweep.mlflow_writer import flatten

    old, new = flatten(stored), flatten(now)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    shown = [f"{key}: {old.get(key)} then, {new.get(key)} now" for key in keys[:3]]
    return "; ".join(shown) + (f"; and {len(keys) - 3} more" if len(keys) > 3 else "")


def _writer(uri: str, storage: Path, sweep: str) -> MlflowWriter:
    artifacts = storage.absolute() / "artifacts" if uri.partition(":")[0].partition("+")[0] in DATABASES else None
    return MlflowWriter(uri, experiment=experiment_name(), artifacts=artifacts, sweep=sweep)


def _archive(folder: SweepFolder, name: str, make_writer: Callable[[], MlflowWriter]) -> None:
    """Puts the stored sweep aside, files and MLflow runs alike."""
    if not folder.space_file.exists():
        return
    archived = folder.archive()
    make_writer().rename_archived(archived.name)


def _int_keys(data: dict[str, str]) -> dict[int, str]:
    return {int(key): value for key, value in data.items()}


def prepare_cache(space: SearchSpace, *, storage: Path, screen: Screen) -> int:
    """Makes the chunks that a sweep's longest trial reads, without Ray; returns how many there are.

    Raises:
        InputError: the space does not fit the model or the data.
        SurroundingsError: the disk failed or is too small.
    """
    from prolu_tune.sweep.node import NodeServer
    from prolu_tune.sweep.settings import node_settings

    server = NodeServer(node_settings(space, storage))
    count = server.num_chunks(max(trial.training.num_tokens for trial in space.trials() or [space.base]))
    finished = threading.Event()
    watcher = threading.Thread(target=_watch, args=(server, screen, finished), daemon=True)
    watcher.start()
    try:
        for chunk in range(count):
            server.ensure_chunk(chunk)
            screen.note(f"chunk {chunk + 1} of {count} is ready")
    finally:
        finished.set()
        watcher.join()
        screen.stop()
    return count


def _watch(server: Any, screen: Screen, finished: threading.Event) -> None:
    while not finished.wait(1.0):
        state = server.state()
        for note in state["notes"]:
            screen.note(note)
        screen.phase(state["work"], done=state["done"], total=state["total"])
