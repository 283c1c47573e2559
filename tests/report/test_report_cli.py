import json
from pathlib import Path

import pytest
from report_samples import ALL
from stored_sweeps import Store, Writer, config, measured, stored

from prolu_tune.cli.main import main
from prolu_tune.report.collect import COURSE_POINTS, collect
from prolu_tune.results.query import load_sweep

__all__ = ["stored"]


def leave(*arguments: str) -> int:
    """Returns the exit code of a command."""
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Store:
    """A sweep of twelve trials with courses of training, resampling and versions."""
    from mlflow.entities import Metric

    root = tmp_path_factory.mktemp("small")
    writer = Writer(root / "storage")
    writer.sweep("small", {"architectures": {name: {} for name in ALL}, "search": {"kind": "grid"}}, num_trials=12)
    for index in range(12):
        l0 = 10.0 + 5 * index
        checkpoint = root / "trials" / f"{index:04d}" / "sae"
        checkpoint.mkdir(parents=True)
        (checkpoint / "config.json").write_text(json.dumps({"versions": {"torch": "9.9.9"}}))
        run_id = writer.trial(
            "small",
            index,
            config(ALL[index % 6], 1.0 + index),
            metrics=measured(l0, 1 / l0),
            tags={"prolu.checkpoint": str(checkpoint)},
        )
        rows = [Metric("train/l0", 500 / (1 + step) + l0, step + 1, step) for step in range(240)]
        rows += [Metric("train/lr", 1e-3, step + 1, step) for step in range(240)]
        writer.client.log_batch(run_id, metrics=[*rows, Metric("train/num_resampled", 12, 121, 120)])
    return writer.store


def test_the_page_is_written_and_logged_on_the_sweep_s_run_with_its_figures(small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert leave("report", "small", "-o", "out/page.html", "--figures", "figures", "--tracking-uri", small.uri, "--json") == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["schema"] == 1 and document["report"] == "out/page.html" and document["logged"] is True
    assert [finding["number"] for finding in document["findings"]] == [1, 2, 3, 4, 5]
    assert len(document["runs"]) == 12
    page = Path("out/page.html").read_bytes()
    assert len(page) == document["bytes"] < 1_200_000
    assert {Path(name).suffix for name in document["figures"]} == {".svg", ".pdf"}
    assert all(Path(name).stat().st_size > 1000 for name in document["figures"])
    assert "12 of 12 trials finished" in err
    logged = list(small.storage.glob(f"artifacts/{small.sweeps['small']}/artifacts/report/report.html"))
    assert len(logged) == 1 and logged[0].read_bytes() == page


def test_what_is_collected_is_what_the_store_holds(small):
    data = collect(load_sweep("small", tracking_uri=small.uri))
    assert len(data.finished) == 12 and data.architectures == list(ALL) and data.seeds == 1
    assert data.versions == {"torch": "9.9.9"}
    assert set(data.varied) == {"sae.nonlinearity", "sae.penalty", "training.l1_coefficient"}
    assert data.settings["training.num_tokens"] == "1000000" and "seed" in data.settings
    assert len(data.courses) == 12
    course = data.courses[0]
    assert len(course.points) == COURSE_POINTS and course.points[0][0] == 0 and course.points[-1][0] == 240
    assert course.points[0][1] == pytest.approx(500 + data.rows[0]["l0"]) and course.points[5][2] == 1e-3
    assert course.resampled == [(120, 12)]


def test_trials_that_failed_diverged_or_run_do_not_count_as_finished(stored: Store, tmp_path, capsys):
    target = tmp_path / "exp3.html"
    assert leave("report", "exp3", "-o", str(target), "--tracking-uri", stored.uri, "--no-log") == 0
    out, err = capsys.readouterr()
    assert out == f"{target}\n" and "13 of 17 trials finished" in err
    page = target.read_text()
    assert "disk on fire" in page and "1 stopped" in page and "1 running" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no sweep nothing"),
        (["exp3", "-o", "."], "is a folder"),
        (["exp3", "--figures", "file.txt"], "is a file"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(stored: Store, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").touch()
    assert leave("report", *arguments, "--tracking-uri", stored.uri) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err
    assert not (tmp_path / "report.html").exists()


def test_a_sweep_without_a_trial_gives_a_page_and_exit_code_1(stored: Store, tmp_path):
    assert leave("report", "bare", "-o", str(tmp_path / "bare.html"), "--tracking-uri", stored.uri, "--no-log") == 1
    assert "0 of 4" in (tmp_path / "bare.html").read_text()
