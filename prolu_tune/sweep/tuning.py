"""Hands a sweep's trials to Ray Tune; with `ray_setup` and `worker` the only place that knows Ray."""

import contextlib
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prolu_tune.search.space import Resources, SearchSpace
from prolu_tune.sweep import ray_setup
from prolu_tune.sweep.driver import SweepDriver
from prolu_tune.sweep.local_ray import LocalRay
from prolu_tune.sweep.settings import Machines, WorkerSettings, node_settings
from prolu_tune.sweep.shared import write_token
from prolu_tune.sweep.signals import SignalledError, keep_handler, start_again

MOST_AT_ONCE = 10**6
"""For Tune, which otherwise takes one trial at a time from a searcher; how many there may be is `SweepDriver.capacity`."""


def run_trials(space: SearchSpace, driver: SweepDriver, *, storage: Path, machines: Machines) -> None:
    """Runs trials until the driver has no more, or stops.

    Raises:
        InputError: the space does not fit the machine, the model or the data.
        SurroundingsError: Ray does not start or the node server fails.
    """
    driver.screen.phase("starting Ray")
    local = LocalRay(driver.folder.local_ray_file) if machines.address is None else None
    if local:
        local.watch(lambda name: start_again(driver, name))
    with contextlib.ExitStack() as leaving:
        # Ray prints what its machines tell; standard output is for the one document that was asked for.
        told = leaving.enter_context((driver.folder.root / "ray.log").open("a", buffering=1, encoding="utf-8"))
        leaving.enter_context(contextlib.redirect_stdout(told))
        leaving.callback(_end_ray, local)
        try:
            with keep_handler():
                found = ray_setup.start_ray(
                    machines.address,
                    token_folder=storage.absolute(),
                    trial_gpus=space.resources.gpus_per_trial,
                    temporary_folder=local.ray_folder if local else None,
                )
        except SignalledError:
            driver.request_stop()
            return
        ray_setup.check_resources(space.resources, found, machines.node_types)
        _tune(space, driver, storage=storage, machines=machines)


def _end_ray(local: LocalRay | None) -> None:
    import ray

    if local:
        local.unwatch()
    ray.shutdown()
    if local:
        local.end()


def _tune(space: SearchSpace, driver: SweepDriver, *, storage: Path, machines: Machines) -> None:
    from prolu_tune.sweep.nodes import NodeServers
    from prolu_tune.sweep.worker import ray_trial

    settings = _worker_settings(space, driver, storage=storage, cluster=machines.address is not None)
    with NodeServers(settings, driver, space.resources, machines.node_types) as servers:
        driver.screen.phase(f"loading {space.activations.model}")
        longest = max((trial.training.num_tokens for trial in space.trials()), default=space.training.num_tokens)
        servers.check(longest)
        driver.screen.phase("")
        fit(driver, ray_trial, settings=settings, resources=space.resources)
        driver.count_tokens(servers.tokens())


def fit(driver: SweepDriver, trial: Callable[[dict[str, Any]], None], *, settings: Any, resources: Resources) -> None:
    """Has Tune run a function over the driver's trials until there are no more.

    Args:
        driver: gives out trials and takes what becomes of them.
        trial: gets an assignment of `StudySearcher` and reports to Tune as `worker.ray_trial` does.
        settings: added to every assignment.
        resources: of a trial.
    """
    from ray import tune
    from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner

    from prolu_tune.sweep.searcher import DriverCallback, StudySearcher

    ray_setup.keep_secrets()
    wanted: dict[str, float] = {"cpu": resources.cpus_per_trial}
    if resources.gpus_per_trial:
        wanted["gpu"] = resources.gpus_per_trial
    shutil.rmtree(driver.folder.ray_folder, ignore_errors=True)
    Tuner(
        tune.with_resources(trial, wanted),
        tune_config=TuneConfig(
            search_alg=StudySearcher(driver, {"settings": settings}),
            num_samples=-1,
            max_concurrent_trials=MOST_AT_ONCE,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=RunConfig(
            name="tune",
            storage_path=str(driver.folder.ray_folder),
            verbose=0,
            callbacks=[DriverCallback(driver.name)],
            failure_config=FailureConfig(max_failures=resources.max_failures),
        ),
    ).fit()


def _worker_settings(space: SearchSpace, driver: SweepDriver, *, storage: Path, cluster: bool) -> WorkerSettings:
    """Returns what workers are told; on a cluster with a token put where all of them should find it."""
    folder, mirror_uri = str(driver.folder.root), driver.mirror.uri if driver.mirror else None
    token = secrets.token_hex(16) if cluster else ""
    if cluster:
        write_token(mirror_uri or folder, token)
    return WorkerSettings(
        sweep_folder=folder,
        mirror_uri=mirror_uri,
        storage_token=token,
        namespace=f"prolu-{space.name}-{secrets.token_hex(4)}",
        node=node_settings(space, storage, cluster=cluster),
        gpus_per_trial=space.resources.gpus_per_trial,
        accept_numerics=driver.accept_numerics,
    )


def _trial_name(trial: Any) -> str:
    return f"{trial.config['index']:04d}"
