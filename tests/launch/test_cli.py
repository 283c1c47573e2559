"""The verbs that know clusters, where there is none or something else is wrong: one message, exit code 2."""

from pathlib import Path

import pytest

from prolu_tune.cli.main import main

SPACE = str(Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stop", "exp3"], "no cluster is up that could run exp3; give its file with --cluster"),
        (["stop", "exp3", "--address", "local"], "no cluster is up"),
        (["run", SPACE, "--address", "ray://h:10001"], "Ray Client is not used here"),
        (["run", SPACE, "--cluster", "none.yaml"], "none.yaml: no such file"),
        (["run", SPACE, "--address", "http://127.0.0.1:1"], "nothing says where http://127.0.0.1:1 keeps its sweeps"),
        (["status", "exp3", "--cluster", "none.yaml"], "none.yaml: no such file"),
        (["pareto", "exp3", "--cluster", "c.yaml", "--tracking-uri", "http://t:5000"], "give one"),
        (["dashboard", "--cluster", "none.yaml"], "none.yaml: no such file"),
        (["export", "0" * 32, "out", "--cluster", "none.yaml"], "none.yaml: no such file"),
        (["report", "exp3", "--cluster", "none.yaml"], "none.yaml: no such file"),
    ],
)
def test_what_cannot_be_is_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "") and words in err and "Traceback" not in err
    assert not (tmp_path / "prolu_runs").exists()


def test_a_job_server_that_does_not_answer_is_exit_code_3(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["run", SPACE, "--address", "http://127.0.0.1:1", "--storage", "/mnt/x"])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (3, "")
    assert "the job server of http://127.0.0.1:1 does not answer" in err.splitlines()[-1]
