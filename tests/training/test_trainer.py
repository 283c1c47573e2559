"""How a training ends, what it reports, and that a resume at any point gives the same bits."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prolu_tune.config.resolve import TrialPlan, plan_trial
from prolu_tune.config.trial import TrialConfig
from prolu_tune.errors import InputError, OtherNumericsError, SurroundingsError
from prolu_tune.training import state
from prolu_tune.training.numerics import numerics_signature
from prolu_tune.training.trainer import TrainingResult, train

D_IN, BATCH = 6, 16


def _trial(**changes: dict) -> tuple[TrialConfig, TrialPlan]:
    sections = {
        "sae": {"nonlinearity": "prolu_ste", "penalty": "sqrt_l1", "d_sae": 20},
        "training": {
            "num_tokens": 26 * BATCH,
            "batch_size": BATCH,
            "l1_coefficient": 0.3,
            "warmup_steps": 3,
            "cooldown_start": 15,
            "cooldown_steps": 3,
            "log_every": 4,
        },
        "resampling": {"steps": [7, 12], "window_steps": 4, "num_tokens": 3 * BATCH, "dead_frequency": 0.35},
    }
    config = TrialConfig.model_validate({name: {**section, **changes.get(name, {})} for name, section in sections.items()})
    return config, plan_trial(config, d_in=D_IN)


def _batches(first_token: int) -> Iterator[torch.Tensor]:
    """A stream of which every batch is a function of its position, as the real one."""
    assert first_token % BATCH == 0
    position = first_token // BATCH
    while True:
        yield (5 * torch.randn(BATCH, D_IN, generator=torch.Generator().manual_seed(position)) + 1).half()
        position += 1


class Run:
    """Collects the rows of a training in one or more parts."""

    def __init__(self, folder: Path | None = None, **changes: dict) -> None:
        self.config, self.plan = _trial(**changes)
        self.folder = folder
        self.rows: dict[int, dict] = {}
        self.asked = 0
        self.read = 0

    def _counted(self, first_token: int) -> Iterator[torch.Tensor]:
        for batch in _batches(first_token):
            self.read += 1
            yield batch

    def _collect(self, row: dict) -> None:
        # A row that comes again after a resume must be the same to the last bit.
        assert self.rows.setdefault(row["step"], row) == row

    def go(self, stop_at: int | None = None, *, fail: type[Exception] | None = None, **kwargs) -> TrainingResult:
        """Trains until done or until should_stop is asked for the stop_at-th time from now, then stops or fails there."""
        asked_before = self.asked

        def should_stop() -> bool:
            self.asked += 1
            if self.asked - asked_before == stop_at:
                if fail is not None:
                    raise fail
                return True
            return False

        arguments: dict = {"batches": self._counted, "report": self._collect, "checkpoint_dir": self.folder, "device": "cpu"}
        return train(self.config, plan=self.plan, should_stop=should_stop, **{**arguments, **kwargs})


def _weights(result: TrainingResult) -> dict[str, torch.Tensor]:
    return dict(result.sae.state_dict())


def _assert_same(run: Run, result: TrainingResult, undisturbed: Run, expected: TrainingResult) -> None:
    assert result.outcome == "finished"
    for name, tensor in _weights(expected).items():
        assert torch.equal(_weights(result)[name], tensor), name
    assert run.rows == undisturbed.rows
    for name in ("step", "tokens", "rows", "notes", "frac_alive", "frac_alive_tokens"):
        assert getattr(result, name) == getattr(expected, name)


@pytest.fixture(scope="module")
def undisturbed() -> tuple[Run, TrainingResult]:
    run = Run()
    return run, run.go()


def test_an_undisturbed_run_reads_its_plan_and_reports_every_row(undisturbed):
    run, result = undisturbed
    assert (result.outcome, result.step, result.tokens) == ("finished", 20, 26 * BATCH)
    assert run.read == 26
    assert sorted(run.rows) == [4, 7, 8, 12, 16, 20]
    assert result.rows == 6
    assert [row["tokens"] // BATCH for _, row in sorted(run.rows.items())] == [4, 10, 11, 18, 22, 26]
    assert result.frac_alive_tokens == 4 * BATCH
    assert 0 < result.frac_alive < 1


def test_resamplings_stand_in_the_row_of_their_step(undisturbed):
    run, _ = undisturbed
    for step, row in run.rows.items():
        assert ("num_dead" in row) == (step in (7, 12))
    event = run.rows[7]
    assert 0 < event["num_dead"] == event["num_resampled"]
    assert event["num_candidates"] == 3 * BATCH
    assert event["window_tokens"] == 4 * BATCH
    assert event["window_unresolved"] == 0


def test_runs_repeat_to_the_last_bit_and_seeds_matter(undisturbed):
    run, expected = undisturbed
    again = Run()
    _assert_same(again, again.go(), run, expected)
    other = Run()
    other.config = other.config.model_copy(update={"seed": 1})
    assert not torch.equal(other.go().sae.W_enc, expected.sae.W_enc)


# should_stop is asked after each of the first 19 steps and before each of the 6 batches of the two resamplings.
CUTS = range(1, 26)


@pytest.mark.parametrize("cut", CUTS)
def test_stopping_at_any_point_and_going_on_gives_the_same_bits(cut, undisturbed, tmp_path):
    run = Run(tmp_path / "checkpoints")
    assert run.go(stop_at=cut).outcome == "interrupted"
    _assert_same(run, run.go(), *undisturbed)


def test_stopping_after_every_question_still_ends_with_the_same_bits(undisturbed, tmp_path):
    run = Run(tmp_path)
    # Four questions are one more than a resampling asks, so that each start gets past it.
    parts = 1
    while (result := run.go(stop_at=4)).outcome == "interrupted":
        parts += 1
        assert parts < 30
    assert parts > 5
    _assert_same(run, result, *undisturbed)


@pytest.mark.parametrize("cut", CUTS)
def test_a_crash_after_a_stop_goes_back_to_the_checkpoint_and_gives_the_same_bits(cut, undisturbed, tmp_path):
    run = Run(tmp_path)
    run.go(stop_at=cut)
    with pytest.raises(ZeroDivisionError):
        run.go(stop_at=3, fail=ZeroDivisionError) if cut < 22 else run.go(report=_crash)
    _assert_same(run, run.go(), *undisturbed)


def _crash(row: dict) -> None:
    raise ZeroDivisionError(row)


def test_a_crash_without_any_checkpoint_starts_again(undisturbed, tmp_path):
    run = Run(tmp_path)
    with pytest.raises(ZeroDivisionError):
        run.go(stop_at=9, fail=ZeroDivisionError)
    _assert_same(run, run.go(), *undisturbed)


def test_writing_checkpoints_changes_nothing_and_the_last_two_are_kept(undisturbed, tmp_path):
    run = Run(tmp_path, training={"checkpoint_every_s": 1e-9})
    result = run.go()
    _assert_same(run, result, *undisturbed)
    assert 1 <= len(list(tmp_path.iterdir())) <= 2


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(undisturbed, tmp_path):
    run = Run(tmp_path)
    run.go(stop_at=5)
    run.go(stop_at=9)
    newest = max(tmp_path.iterdir())
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    result = run.go()
    assert "damaged checkpoint was set aside" in result.notes[-1]
    for name, tensor in _weights(undisturbed[1]).items():
        assert torch.equal(_weights(result)[name], tensor)
    assert run.rows == undisturbed[0].rows


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path):
    Run(tmp_path).go(stop_at=5)
    with pytest.raises(InputError, match="step 5 belongs to another configuration"):
        Run(tmp_path, training={"lr": 2e-3}).go()
    # When checkpoints are written is no part of it.
    assert Run(tmp_path, training={"checkpoint_every_s": 7.0}).go().outcome == "finished"


def test_a_full_disk_is_reported_and_the_run_goes_on_when_there_is_room(undisturbed, tmp_path):
    run = Run(tmp_path)
    run.go(stop_at=5)
    full = tmp_path / "checkpoint-0000000009.safetensors.tmp"

    def fill(row: dict) -> None:
        if not full.is_symlink():
            full.symlink_to("/dev/full")

    with pytest.raises(SurroundingsError, match="No space left on device"):
        run.go(stop_at=7, report=fill)
    _assert_same(run, run.go(), *undisturbed)


def test_a_report_may_stop_the_trial_early(undisturbed):
    run = Run()
    result = run.go(report=lambda row: "stop" if row["step"] == 8 else None)
    assert (result.outcome, result.step, result.rows) == ("stopped", 8, 3)
    assert result.message == "stopped early at step 8 of 20"


def test_a_stop_at_the_last_row_is_a_finished_run():
    assert Run().go(report=lambda row: "stop" if row["step"] == 20 else None).outcome == "finished"


def _exploding(first_token: int) -> Iterator[torch.Tensor]:
    for number, batch in enumerate(_batches(first_token)):
        yield torch.full_like(batch, math.nan) if number == 5 else batch


@pytest.mark.parametrize("nonlinearity", ["relu", "prolu_relu", "prolu_ste"])
def test_a_loss_that_is_not_finite_ends_the_trial_as_diverged_at_the_next_row(nonlinearity):
    run = Run(sae={"nonlinearity": nonlinearity})
    rows: list[dict] = []
    result = run.go(batches=_exploding, report=lambda row: rows.append(row))
    assert (result.outcome, result.step) == ("diverged", 7)
    assert not math.isfinite(rows[-1]["loss"])
    assert "at or shortly before step 7" in result.message


def test_a_window_too_short_for_the_dead_frequency_is_reported_once_in_words_and_in_each_row():
    run = Run(resampling={"dead_frequency": 3e-6})
    result = run.go()
    assert [run.rows[step]["window_unresolved"] for step in (7, 12)] == [1, 1]
    assert [note for note in result.notes if "cannot resolve resampling.dead_frequency 3e-06" in note] == list(result.notes)
    assert len(result.notes) == 1


def test_more_dead_latents_than_candidates_are_replaced_as_far_as_they_go():
    run = Run(resampling={"max_candidate_norm": 8.0, "dead_frequency": 0.6})
    result = run.go()
    event = run.rows[7]
    assert 0 < event["num_resampled"] == event["num_candidates"] < event["num_dead"]
    assert "could replace one" in result.notes[0]


def test_bfloat16_on_the_cpu_is_refused():
    with pytest.raises(InputError, match="needs a GPU"):
        Run(training={"precision": "bfloat16"}).go()


def test_a_checkpoint_made_with_other_numerics_is_refused_and_goes_on_once_that_is_accepted(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.go(stop_at=6)
    monkeypatch.setattr(state, "numerics_signature", lambda *arguments: numerics_signature(*arguments) | {"cpu": "another"})
    with pytest.raises(OtherNumericsError, match=r"cpu .* -> another.*--accept-numerics"):
        run.go()
    accepted = run.go(stop_at=4, accept_numerics=True)
    assert accepted.outcome == "interrupted"
    finished = run.go()  # its newest checkpoint is of this machine already
    assert finished.outcome == "finished"
    (change,) = finished.numerics_changes
    assert change.startswith("from step 6: cpu ")
    assert change.endswith("-> another")


def test_a_run_whose_numerics_never_changed_says_nothing_of_them(undisturbed):
    assert undisturbed[1].numerics_changes == ()
