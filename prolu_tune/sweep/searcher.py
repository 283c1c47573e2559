"""Ray Tune's side of the driver: a searcher that hands out the study's trials, and a callback that takes their events.

Tune pickles both into its snapshots. Nothing of them is ever read back, so they carry the sweep's name only and find
their driver in `_DRIVERS`.
"""

from typing import Any

from ray.tune import Callback
from ray.tune.search import Searcher

from prolu_tune.sweep.attempts import note_lack_of_memory
from prolu_tune.sweep.driver import SweepDriver
from prolu_tune.sweep.study import Proposal, TrialResult

LACK_OF_MEMORY = ("OutOfMemoryError", "running low on memory", "memory pressure")
"""Words of Ray's own memory monitor."""
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
        driver = _DRIVERS[self._name]
        answer = driver.next_trial()
        if not isinstance(answer, Proposal):
            return Searcher.FINISHED if answer == "done" else None
        return self._common | {
            "index": answer.index,
            "config": answer.config.model_dump_json(),
            "stop_rule": answer.stop_rule,
            "report_every_s": driver.report_every_s,
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
        if "refused" in report:
            driver.refuse(index, report["refused"])
            return
        driver.left(index)
        if "surroundings" in report:
            driver.stop_for(report["surroundings"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died more often than `max_failures` allows without getting any further."""
        driver, index = _DRIVERS[self._name], trial.config["index"]
        message = (
            f"its process died {trial.num_failures} times at or after step {driver.furthest.get(index, 0)} without getting any "
            f"further ({_reason(trial)}); mend what kills it, then run again with --retry-failed"
        )
        driver.ended(index, TrialResult(outcome="failed", record={}, message=message))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process or node was lost and the trial will go on from the last checkpoint.

        Only losses without progress in between count towards `max_failures`, and those of a whole node never do.
        """
        driver, index = _DRIVERS[self._name], trial.config["index"]
        reason = _reason(trial)
        moved = driver.lost(index)
        if "node has died" in reason or "node was preempted" in reason:
            trial.run_metadata.num_failures = max(0, trial.num_failures - 1)
        elif moved:
            trial.run_metadata.num_failures = 1
        if any(word in reason for word in LACK_OF_MEMORY):
            note_lack_of_memory(driver.folder.trial(index))
        driver.screen.note(f"trial {index} lost its process; it goes on from its last checkpoint")


def _reason(trial: Any) -> str:
    """Returns what Ray says about the loss of a trial's process, on one line."""
    error = trial.get_pickled_error() or trial.get_error() or "the process died"
    return " ".join(str(error).split())[:400]
