"""A trial's rows on disk."""

from pathlib import Path

from prolu_tune.sweep.trial import MetricsFile


def _row(step: int, loss: float) -> dict[str, float]:
    return {"step": step, "loss": loss, "l0": 1.5}


def test_a_resumed_trial_leaves_each_step_once_and_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in (10, 20, 30):
        first.append(_row(step, step / 10))
    with path.open("ab") as out:
        out.write(b'{"step": 40, "lo')
    second = MetricsFile(path)
    assert [row["step"] for row in second.rows] == [10, 20, 30]
    for step in (20, 30, 40):
        second.append(_row(step, step / 10))
    undisturbed = MetricsFile(tmp_path / "undisturbed.jsonl")
    for step in (10, 20, 30, 40):
        undisturbed.append(_row(step, step / 10))
    assert path.read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()


def test_a_loss_that_is_no_number_is_kept_as_null(tmp_path: Path) -> None:
    rows = MetricsFile(tmp_path / "metrics.jsonl")
    rows.append(_row(10, float("nan")))
    assert MetricsFile(tmp_path / "metrics.jsonl").rows == [{"step": 10, "loss": None, "l0": 1.5}]
