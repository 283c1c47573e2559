"""How often a trial whose process dies is started again, with stand-ins for Tune's trial and the driver."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prolu_tune.sweep import searcher
from prolu_tune.sweep.driver import SweepDriver
from prolu_tune.sweep.files import SweepFolder
from prolu_tune.sweep.searcher import DriverCallback

DIED = "The actor died unexpectedly before finishing this task."
NODE = "The actor died because its node has died. Node Id: 1"
MONITOR = "Task was killed due to the node running low on memory."


class Trial:
    """What Tune's trial looks like to the callback."""

    def __init__(self) -> None:
        self.config = {"index": 0}
        self.run_metadata = SimpleNamespace(num_failures=0)
        self.error = DIED

    @property
    def num_failures(self) -> int:
        return self.run_metadata.num_failures

    def get_pickled_error(self) -> Exception:
        return RuntimeError(self.error)

    def get_error(self) -> None:
        return None


class Notes:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepDriver:
    folder = SweepFolder(tmp_path)
    folder.create()
    folder.trial(0).mkdir()
    study: Any = SimpleNamespace(unfinished=lambda proposer: [])
    nobody: Any = None
    screen: Any = Notes()
    made = SweepDriver("s", folder, study, nobody, nobody, screen)
    monkeypatch.setitem(searcher._DRIVERS, "s", made)
    return made


def _lose(trial: Trial, limit: int) -> bool:
    """Loses the trial's process as Tune sees it; returns whether Tune starts it again."""
    trial.run_metadata.num_failures += 1
    if trial.num_failures > limit:
        return False
    DriverCallback("s").on_trial_recover(0, [], trial)
    return True


def test_a_trial_that_dies_at_the_same_step_is_started_again_as_often_as_allowed(driver: SweepDriver) -> None:
    trial = Trial()
    driver.furthest[0] = 40
    assert [_lose(trial, 3) for _ in range(5)] == [True, True, True, False, False]


def test_a_trial_that_gets_further_each_time_is_started_again_without_limit(driver: SweepDriver) -> None:
    trial = Trial()
    for step in range(1, 40):
        driver.furthest[0] = step
        assert _lose(trial, 3)
    assert [_lose(trial, 3) for _ in range(4)] == [True, True, False, False]


def test_lost_nodes_do_not_count(driver: SweepDriver) -> None:
    trial = Trial()
    trial.error = NODE
    assert all(_lose(trial, 0 + 1) for _ in range(40))


def test_what_rays_memory_monitor_ended_is_noted_for_the_next_process(driver: SweepDriver) -> None:
    from prolu_tune.sweep.attempts import Attempt

    trial = Trial()
    trial.error = MONITOR
    assert _lose(trial, 3)
    assert Attempt(driver.folder.trial(0), driver="d").lack_of_memory is not None


def test_a_loss_is_one_line_of_ours(driver: SweepDriver) -> None:
    _lose(Trial(), 3)
    assert driver.screen.said == ["trial 0 lost its process; it goes on from its last checkpoint"]
