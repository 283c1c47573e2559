"""What Ray and torch are to the code under test: Tune's loop over trials, worker processes, a training."""

import functools
import traceback
from collections import deque
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from ray.tune.search import Searcher

from prolu_tune.config.resolve import plan_trial
from prolu_tune.config.trial import TrialConfig
from prolu_tune.durable import replace_file
from prolu_tune.errors import SurroundingsError
from prolu_tune.sae.folder import load_sae_folder, read_sae_config
from prolu_tune.sae.model import SparseAutoencoder
from prolu_tune.sae.tensor_file import TensorSpec
from prolu_tune.sweep import trial as trial_module
from prolu_tune.sweep.files import surroundings_error
from prolu_tune.sweep.searcher import DriverCallback, StudySearcher
from prolu_tune.sweep.study import TrialResult
from prolu_tune.training import checkpoint as checkpoint_module
from prolu_tune.training.checkpoint import Checkpoint, load_newest
from prolu_tune.training.trainer import TrainingResult
from simulator import spaces
from simulator.clock import Killed, Process, SimQueue, current_process

RETRY_PAUSE_S = 0.1
STATE = {"x": TensorSpec(torch.float64, (1,))}


class TuneTrial:
    """What Tune's callbacks are given."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.last_result: dict[str, Any] | None = None
        self.run_metadata = SimpleNamespace(num_failures=0)
        self.process: Process | None = None
        self.task: Any = None

    @property
    def num_failures(self) -> int:
        """Losses that count."""
        return self.run_metadata.num_failures

    def get_pickled_error(self) -> str | None:
        """Returns nothing."""
        return None

    def get_error(self) -> str:
        """Returns what Tune would say."""
        return "The actor died unexpectedly before finishing this task."


class Tune:
    """Stands in for `ray.tune` in a worker, for its loop in a driver, and for the training."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self._mail: dict[int, tuple[SimQueue, TuneTrial]] = {}

    # -- the driver's side

    def run_trials(self, space: Any, driver: Any, **_: Any) -> None:
        """Stands in for `tuning.run_trials`."""
        world = self._world
        asked, callback, mail = StudySearcher(driver, {"driver": driver}), DriverCallback(driver.name), SimQueue(world.clock)
        live: dict[int, TuneTrial] = {}
        trials: list[TuneTrial] = []
        finished = False
        while True:
            while not finished and len(live) < world.at_once:
                config = asked.suggest(f"t{len(trials)}")
                if config == Searcher.FINISHED:
                    finished = True
                elif config is None:
                    break
                else:
                    trial = TuneTrial(config)
                    trials.append(trial)
                    live[id(trial)] = trial
                    self._launch(trial, mail)
            if not live:
                if finished:
                    return
                world.violation("the searcher waits although nothing runs")
                return
            kind, trial, payload = mail.get()
            if kind == "report":
                trial.last_result = payload
                callback.on_trial_result(0, trials, trial, payload)
                payload["consumed"].set()
            elif kind == "returned":
                del live[id(trial)]
                asked.on_trial_complete("t", trial.last_result)
                callback.on_trial_complete(0, trials, trial)
            else:
                trial.run_metadata.num_failures += 1
                if trial.num_failures > space.resources.max_failures:
                    del live[id(trial)]
                    callback.on_trial_error(0, trials, trial)
                else:
                    callback.on_trial_recover(0, trials, trial)
                    self._launch(trial, mail)

    def _launch(self, trial: TuneTrial, mail: SimQueue) -> None:
        world = self._world
        process = trial.process = Process("trial", current_process())
        world.workers.append(process)
        self._mail[id(process)] = (mail, trial)
        trial.task = world.clock.spawn(process, functools.partial(self.work, trial.config), delay=world.rng.random() * 0.2)
        trial.task.on_end = functools.partial(self._left, trial, trial.task, process, mail)

    def _left(self, trial: TuneTrial, task: Any, process: Process, mail: SimQueue) -> None:
        """Ray tells the driver when a trial's function returned or its process died."""
        world = self._world
        if task.error is None:
            mail.put(("returned", trial, None))
        else:  # killed, or an exception that Tune takes for the same
            world.say(f"trial {trial.config['index']} lost: {type(task.error).__name__} {task.error}")
            world.clock.spawn(Process("raylet"), lambda: mail.put(("died", trial, None)), delay=RETRY_PAUSE_S)
        if process.alive:
            world.clock.kill(process, 0)
            world.disk.drop(process)

    # -- the worker's side

    def report(self, payload: dict[str, Any]) -> None:
        """Stands in for `ray.tune.report`: returns when the driver has taken it."""
        process = current_process()
        assert process is not None
        if not process.alive:
            raise Killed
        self._strike("trial: report")
        mail, trial = self._mail[id(process)]
        consumed = deque()
        payload = payload | {"consumed": SimpleNamespace(set=lambda: consumed.append(True))}
        mail.put(("report", trial, payload))
        while not consumed:
            self._world.clock.sleep(0.05)

    def work(self, assignment: dict[str, Any]) -> None:
        """Stands in for `worker.ray_trial`, and reports what that reports."""
        config = TrialConfig.model_validate_json(assignment["config"])
        driver = assignment["driver"]
        folder = driver.folder.trial(assignment["index"])
        try:
            result = trial_module.run_trial(
                config,
                plan=plan_trial(config, d_in=spaces.D_IN),
                batches=lambda first_token: iter(()),
                evaluate=self._evaluate,
                report=self._reporter(),
                folder=folder,
                device="cpu",
                should_stop=lambda: driver.stopping,
                stop_rule=assignment["stop_rule"],
            )
        except (SurroundingsError, OSError) as error:
            told = surroundings_error(error, folder) if isinstance(error, OSError) else error
            self.report({"surroundings": str(told)})
        except Exception as error:  # a trial's own error is a result
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / "error.txt", [traceback.format_exc().encode()])
            message = f"{type(error).__name__}: {error}"
            self.report({"result": asdict(TrialResult(outcome="failed", record={}, message=message))})
        else:
            self.report({"interrupted": True} if result is None else {"result": asdict(result)})

    def _reporter(self) -> Any:
        last = self._world.clock.now

        def report(row: dict[str, Any]) -> None:
            nonlocal last
            if self._world.clock.now - last > 0.3:
                last = self._world.clock.now
                self.report({"row": row})

        return report

    def _evaluate(self, folder: Path) -> dict[str, float]:
        self._begin()
        self._strike("trial: evaluate")
        self._world.clock.sleep(self._world.rng.choice((0.05, 0.3)))
        sae = load_sae_folder(folder)
        config = TrialConfig.model_validate(read_sae_config(folder)["config"])
        return spaces.evaluation(config, float(sae.W_enc[0, 0].item()))

    def train(self, config: Any, *, plan: Any, report: Any, checkpoint_dir: Path, should_stop: Any, **_: Any) -> TrainingResult:
        """Stands in for `train`: the same order of events around a formula."""
        world = self._world
        self._begin()
        found, _notes = load_newest(checkpoint_dir, STATE)
        step, x = (0, spaces.first_state(config)) if found is None else (found.step, float(found.tensors["x"][0].item()))
        index = int(checkpoint_dir.parent.name)
        if step < world.checkpoints.get(index, 0):
            world.violation(
                f"trial {index} goes on from step {step}, its checkpoint at {world.checkpoints[index]} was complete"
            )
        due = world.clock.now + world.rng.choice((0.2, 0.5, 2.0))
        while True:
            if step > 0:
                row = spaces.row_of(config, step, x)
                answer = report(row)
                if row["loss"] != row["loss"]:
                    return _result("diverged", config, step, x, "the loss became nan")
                if answer == "stop" and step < spaces.NUM_STEPS:
                    return _result("stopped", config, step, x, f"stopped early at step {step}")
            if step == spaces.NUM_STEPS:
                return _result("finished", config, step, x, "finished")
            if config.training.l1_coefficient < spaces.FAILS_BELOW and step == 3:
                raise ValueError("a deterministic error")
            self._strike("trial: step")
            world.clock.sleep(world.rng.choice((0.01, 0.1, 0.3)))
            step, x = step + 1, spaces.next_state(x)
            world.steps_taken[index] += 1
            stop = step < spaces.NUM_STEPS and should_stop()
            if stop or world.clock.now >= due:
                tensors = {"x": torch.tensor([x], dtype=torch.float64)}
                checkpoint_module.save_checkpoint(checkpoint_dir, Checkpoint(step, tensors, {}))
                world.checkpoints[index] = max(step, world.checkpoints.get(index, 0))
                due = world.clock.now + world.rng.choice((0.2, 0.5, 2.0))
            if stop:
                return _result("interrupted", config, step, x, "interrupted")

    def _begin(self) -> None:
        process = current_process()
        assert process is not None
        process.begun = True

    def _strike(self, name: str) -> None:
        struck = self._world.effect(name)
        if struck is not None:
            self._world.happen(struck)
            self._world.settled()


def _result(outcome: Any, config: Any, step: int, x: float, message: str) -> TrainingResult:
    sae = SparseAutoencoder(config.sae, spaces.D_IN, config.sae.d_sae, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.W_enc.fill_(x)
        sae.W_dec.fill_(1.0 - x)
    known: dict[str, Any] = {
        "outcome": outcome,
        "sae": sae,
        "step": step,
        "tokens": step * 16,
        "rows": step,
        "message": message,
    }
    known |= {"wall_s": 1.0, "frac_alive": 1.0, "frac_alive_tokens": 16}
    empty = {field.name: () for field in fields(TrainingResult) if field.name not in known}
    return TrainingResult(**(empty | known))
