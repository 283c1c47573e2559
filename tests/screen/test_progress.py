"""Time left and best runs, from events and an invented clock."""

from stored_sweeps import config, measured

from prolu_tune.results.records import Record, new_record
from prolu_tune.screen.progress import SweepProgress


def record(trial: int, *, l0: float, ce: float, state: str = "finished") -> Record:
    return new_record(config("relu+l1", 1.0), run_id=None, trial=trial, state=state, metrics=measured(l0, ce))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def started(clock: Clock, *, total: int | None, done: int = 0) -> SweepProgress:
    progress = SweepProgress(clock)
    progress.start("demo", architectures=["relu+l1"], total=total, done=done, l0_range=None, records=[])
    return progress


def test_time_left_counts_ended_trials_of_this_start_and_shares_of_running_ones():
    clock = Clock()
    progress = started(clock, total=12, done=4)
    clock.now = 100.0
    for index in (0, 1):
        progress.trial_started(index, "", "relu+l1")
    assert progress.time_left_s is None
    clock.now = 130.0
    progress.trial_progress(1, {"step": 50, "num_steps": 100})
    progress.trial_ended(record(0, l0=10.0, ce=1.0))
    # One and a half trials took 30 s; 12 - 5 - 0.5 are left.
    assert progress.time_left_s == 6.5 * 30.0 / 1.5
    assert progress.done == 5 and progress.elapsed_s == 130.0


def test_without_a_total_no_time_left_is_claimed():
    clock = Clock()
    progress = started(clock, total=None)
    progress.trial_started(0, "", "relu+l1")
    clock.now = 10.0
    progress.trial_ended(record(0, l0=10.0, ce=1.0))
    assert progress.time_left_s is None


def test_an_interrupted_trial_is_not_done():
    progress = started(Clock(), total=2)
    progress.trial_started(0, "", "relu+l1")
    progress.trial_ended(record(0, l0=10.0, ce=1.0, state="interrupted"))
    assert progress.done == 0 and not progress.running


def test_the_best_under_each_limit_is_named_once():
    progress = started(Clock(), total=9)
    for index, (l0, ce, state) in enumerate(
        [
            (8.0, 2.0, "finished"),
            (25.0, 1.0, "finished"),
            (90.0, 1.5, "finished"),
            (250.0, 0.2, "finished"),
            (9.0, 0.0, "stopped"),
        ]
    ):
        progress.trial_ended(record(index, l0=l0, ce=ce, state=state))
    assert [(limit, best["trial"]) for limit, best in progress.best()] == [(10, 0), (30, 1), (300, 3)]
