"""Hands a sweep's trials to Ray Tune; with `ray_setup` and `worker` the only place that knows Ray."""

import shutil
import threading
from pathlib import Path
from typing import Any

from prolu_tune.search.space import SearchSpace
from prolu_tune.sweep import ray_setup
from prolu_tune.sweep.driver import SweepDriver
from prolu_tune.sweep.settings import WorkerSettings, node_settings

PROGRESS_EVERY_S = 1.0


def run_trials(space: SearchSpace, driver: SweepDriver, *, storage: Path, address: str | None) -> None:
    """Runs trials until the driver has no more, or stops.

    Raises:
        InputError: the space does not fit the machine, the model or the data.
        SurroundingsError: Ray does not start or the node server fails.
    """
    driver.screen.phase("starting Ray")
    found = ray_setup.start_ray(address, token_folder=storage.absolute(), trial_gpus=space.resources.gpus_per_trial)
    import ray

    try:
        at_once = ray_setup.check_resources(space.resources, found)
        _tune(space, driver, storage=storage, at_once=at_once, found=found)
    finally:
        ray.shutdown()


def _tune(space: SearchSpace, driver: SweepDriver, *, storage: Path, at_once: int, found: list[ray_setup.Node]) -> None:
    from ray import tune
    from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner

    from prolu_tune.sweep.searcher import DriverCallback, StudySearcher
    from prolu_tune.sweep.worker import ask, node_actor, ray_trial

    settings = WorkerSettings(
        sweep_folder=str(driver.folder.root), namespace=f"prolu-{space.name}", node=node_settings(space, storage)
    )
    servers = [node_actor(settings, node.node_id) for node in found]
    watcher = ServerWatcher(servers, driver)
    watcher.start()
    try:
        driver.screen.phase(f"loading {space.activations.model}")
        longest = max((trial.training.num_tokens for trial in space.trials()), default=space.training.num_tokens)
        ask(servers[0], "check", longest)
        driver.screen.phase("")
        resources: dict[str, float] = {"cpu": space.resources.cpus_per_trial}
        if space.resources.gpus_per_trial:
            resources["gpu"] = space.resources.gpus_per_trial
        shutil.rmtree(driver.folder.ray_folder, ignore_errors=True)
        Tuner(
            tune.with_resources(ray_trial, resources),
            tune_config=TuneConfig(
                search_alg=StudySearcher(driver, {"settings": settings}),
                num_samples=-1,
                max_concurrent_trials=at_once,
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=RunConfig(
                name="tune",
                storage_path=str(driver.folder.ray_folder),
                verbose=0,
                callbacks=[DriverCallback(driver.name)],
                failure_config=FailureConfig(max_failures=space.resources.max_failures),
            ),
        ).fit()
        for server in servers:
            driver.count_tokens(ask(server, "tokens_processed"))
    finally:
        watcher.stop()


def _trial_name(trial: Any) -> str:
    return f"{trial.config['index']:04d}"


class ServerWatcher:
    """Shows what the node servers do, in a thread: chunks being made, notes such as a damaged chunk made anew."""

    def __init__(self, servers: list[Any], driver: SweepDriver) -> None:
        self._servers = servers
        self._driver = driver
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node-servers", daemon=True)

    def start(self) -> None:
        """Starts watching."""
        self._thread.start()

    def stop(self) -> None:
        """Stops watching and waits for the thread."""
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        import ray
        from ray.exceptions import RayError

        while not self._done.wait(PROGRESS_EVERY_S):
            for server in self._servers:
                try:
                    state: Any = ray.get(server.call.remote("state"), timeout=5)
                except RayError:
                    continue
                for note in state["notes"]:
                    self._driver.screen.note(note)
                self._driver.screen.phase(state["work"], done=state["done"], total=state["total"])
