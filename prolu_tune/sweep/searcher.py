"""Ray Tune's side of the driver: a searcher that hands out the study's trials, and a callback that takes their events.

Tune pickles both into its snapshots. Nothing of them is ever read back, so they carry the sweep's name only and find
their driver in `_DRIVERS`.
"""

from typing import Any

from ray.tune import Callback
from ray.tune.search import Searcher

from prolu_tune.sweep.driver import SweepDriver
from prolu_tune.sweep.study import Proposal, TrialResult

_DRIVERS: dict[str, SweepDriver] = {}


class StudySearcher(Searcher):
    """Gives Tune the next trial of the study as `{"index", "config", "stop_rule", ...}`."""

    def __init__(self, driver: SweepDriver, common: dict[str, Any]) -> None:
        """`common` is added to every assignment: what a worker needs to know of the sweep."""
        super().__init__(metric=None, mode="min")
        _DRIVERS[driver.name] = driver
        self._name = driver.name
        self._common = common

    def suggest(self, trial_id: str) -> Any:
        """Returns an assignment, None to be asked again later, or FINISHED."""
        answer = _DRIVERS[self._name].next_trial()
        if not isinstance(answer, Proposal):
            return Searcher.FINISHED if answer == "done" else None
        return self._common | {
            "index": answer.index,
            "config": answer.config.model_dump_json(),
            "stop_rule": answer.stop_rule,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Does nothing: the callback tells the driver."""

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the study is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: the study is the state."""


class DriverCallback(Callback):
    """Tells the driver what happens to trials."""

    def __init__(self, name: str) -> None:
        self._name = name

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Passes progress on; a result is taken when the trial completes."""
        if "row" in result:
            _DRIVERS[self._name].progress(trial.config["index"], result["row"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Takes the result that the trial reported last."""
        driver, index = _DRIVERS[self._name], trial.config["index"]
        report = trial.last_result or {}
        if "result" in report:
            driver.ended(index, TrialResult(**report["result"]))
            return
        driver.left(index)
        if "surroundings" in report:
            driver.stop_for(report["surroundings"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker died more often than `max_failures` allows."""
        reason = str(trial.get_pickled_error() or trial.get_error() or "the worker died").strip().splitlines()[-1]
        message = f"its process died {trial.num_failures} times: {reason}; see the log, then --retry-failed"
        _DRIVERS[self._name].ended(trial.config["index"], TrialResult(outcome="failed", record={}, message=message))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker died and its trial will go on from the last checkpoint."""
        _DRIVERS[self._name].screen.note(f"trial {trial.config['index']} lost its process; it goes on from its last checkpoint")
