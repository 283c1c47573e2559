"""`status`, `pareto`, `best` as scripts and people see them: standard output, standard error, exit code."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from stored_sweeps import EXP3, Store

from prolu_tune.cli.main import main
from prolu_tune.cli.progress import Work
from prolu_tune.cli.tables import RUN_COLUMNS, aligned, folded
from prolu_tune.results.records import FIELDS


class Ended:
    """What a call left: exit code, standard output, standard error."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.out, parse_constant=pytest.fail)


@pytest.fixture
def call(stored: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    for name in ("PROLU_TRACKING_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PROLU_STORAGE", str(stored.storage))

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        code: Any = 0
        try:
            main(list(arguments))
        except SystemExit as ended:
            code = ended.code
        captured = capsys.readouterr()
        return Ended(code or 0, captured.out, captured.err)

    return run


def test_pareto_json_is_the_document_of_the_contract(call, stored: Store):
    ended = call("pareto", "exp3", "--json")
    document = ended.document
    assert ended.code == 0
    assert (document["schema"], document["sweep"], document["x"], document["y"]) == (1, "exp3", "l0", "ce_degradation")
    assert all(list(run) == list(FIELDS) for run in document["runs"])
    assert len(document["runs"]) == 12 and {run["state"] for run in document["runs"]} == {"finished"}
    assert set(document["frontier"]) == {run["run_id"] for run in document["runs"] if run["on_frontier"]}
    assert set(document["frontier_by_architecture"]) == set(document["hypervolume_by_architecture"]) == set(EXP3)
    assert document["left_out"] == 5


def test_another_plane_and_a_range_of_l0_are_about_the_runs_they_hold(call):
    document = call("pareto", "exp3", "--x", "l1", "--y", "mse", "--l0", "12:45", "--json").document
    inside = [l0 for rows in EXP3.values() for _, l0, _ in rows if 12 <= l0 <= 45]
    assert sorted(run["l0"] for run in document["runs"]) == sorted([*inside, 24.8])
    # MSE falls as L1 rises in the invented numbers: all of them are on the frontier.
    assert len(document["frontier"]) == len(document["runs"])


def test_filters_by_architecture_seed_and_parameter(call):
    def trials(*arguments: str) -> list[int]:
        return [run["trial"] for run in call("pareto", "exp3", *arguments, "--json").document["runs"]]

    assert trials("--architecture", "relu+l1", "--architecture", "relu+sqrt_l1") == [0, 1, 2, 9, 10]
    assert trials("--seed", "1") == [11]
    assert trials("--where", "training.l1_coefficient=0.9216", "--where", "mse<0.011") == [0]


def test_several_sweeps_are_compared_and_every_run_says_whose_it_is(call, stored: Store):
    document = call("pareto", "exp1", "exp3", "--json").document
    assert document["sweep"] == "exp1,exp3" and len(document["runs"]) == 14
    assert document["sweep_of_run"][stored.runs["exp1", 0]] == "exp1"
    rows = list(csv.DictReader(io.StringIO(call("pareto", "exp1", "exp3", "--format", "csv").out)))
    assert {row["sweep"] for row in rows} == {"exp1", "exp3"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("pareto", "bare"),
        ("pareto", "exp3", "--l0", "1000:"),
        ("best", "exp3", "--max-l0", "1"),
        ("status", "bare"),
    ],
)
def test_an_empty_answer_is_a_document_without_runs_and_exit_1(call, arguments):
    ended = call(*arguments, "--json")
    assert ended.code == 1 and ended.document["runs"] == [] and ended.document["schema"] == 1
    assert "Traceback" not in ended.err and ended.err.strip()
    assert call(*arguments).code == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pareto", "exp33"), "did you mean exp3"),
        (("best", "exp3", "--architecture", "prolu"), "there are prolu_relu+l1"),
        (("pareto", "exp3", "--l0", "9"), "write LOW:HIGH"),
        (("pareto", "exp3", "--l0", "50:5"), "write 5:50"),
        (("pareto", "exp3", "--x", "l00"), "did you mean l0"),
        (("pareto", "exp3", "--json", "--format", "csv"), "leave one of them out"),
        (("status", "exp3", "--watch", "--json"), "leave one of them out"),
        (("status", "exp3", "--storage", "nowhere"), "run a sweep first"),
    ],
)
def test_wrong_input_is_one_message_and_exit_2_with_empty_output(call, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = call(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err and len(ended.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_tables_for_programs_hold_all_fields_and_full_numbers(call, tmp_path: Path, stored: Store):
    runs = call("pareto", "exp3", "--json").document["runs"]
    rows = list(csv.DictReader(io.StringIO(call("pareto", "exp3", "--format", "csv").out)))
    assert list(rows[0]) == list(FIELDS)
    assert [row["run_id"] for row in rows] == [run["run_id"] for run in runs]
    assert [float(row["mse"]) for row in rows] == [run["mse"] for run in runs]
    assert {row["on_frontier"] for row in rows} == {"true", "false"} and rows[0]["checkpoint"] == ""

    command = [sys.executable, "-m", "prolu_tune.cli.main", "pareto", "exp3", "--format", "parquet"]
    command += ["--storage", str(stored.storage)]
    file = tmp_path / "runs.parquet"
    file.write_bytes(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    table = pq.read_table(file)
    assert table.column_names == list(FIELDS) and table.to_pylist() == runs
    assert [str(table.schema.field(name).type) for name in ("trial", "l0", "on_frontier", "run_id")] == [
        "int64", "double", "bool", "string"
    ]  # fmt: skip


def test_markdown_is_a_table_for_reading(call):
    lines = call("best", "exp3", "--max-l0", "50", "--format", "md").out.splitlines()
    assert lines[0].startswith("| run_id | trial | architecture |") and set(lines[1]) == set("| -")
    assert len(lines) == 2 + 3 and " 24.8 " in lines[2] and " +0.11 " in lines[2]


def test_people_see_the_frontier_aligned_with_whole_ids_and_the_next_command(call, stored: Store):
    ended = call("pareto", "exp3")
    assert ended.out.startswith("exp3: 5 of 12 finished trials on the frontier over l0 and ce_degradation")
    assert stored.runs["exp3", 6] in ended.out
    header = next(line for line in ended.out.splitlines() if line.startswith("architecture"))
    row = next(line for line in ended.out.splitlines() if stored.runs["exp3", 6] in line)
    assert header.index("run_id") == row.index(stored.runs["exp3", 6])
    assert "5 trials left out" in ended.out
    assert "next: prolu-tune best exp3 --max-l0 25" in ended.err


def test_best_ends_with_python_lines_that_load_the_winner(call, stored: Store, monkeypatch: pytest.MonkeyPatch):
    ended = call("best", "exp3", "--max-l0", "24.8")
    run_id = stored.runs["exp3", 6]
    table = [line.split() for line in ended.out.splitlines() if "relu+l1" in line or "prolu_ste+l1" in line]
    assert [words[:2] for words in table][:1] == [["*", "prolu_ste+l1"]]
    snippet = ended.out[ended.out.index("from prolu_tune") :]
    assert len(snippet.splitlines()) == 3 and f"load_sae('{run_id}')" in snippet
    elsewhere = call("best", "exp3", "--max-l0", "24.8", "--tracking-uri", stored.uri + "?timeout=9").out
    assert f"load_sae('{run_id}', tracking_uri='{stored.uri}?timeout=9')" in elsewhere
    import torch

    variables: dict[str, Any] = {"x": torch.ones(2, 8)}
    exec(snippet, variables)
    assert variables["recon"].shape == (2, 8)


def test_best_json_ranks_architectures(call):
    document = call("best", "exp3", "--max-l0", "50", "--json").document
    assert document["max_l0"] == 50 and [run["architecture"] for run in document["runs"]] == [
        "prolu_ste+l1", "prolu_relu+l1", "relu+l1"
    ]  # fmt: skip


def test_status_tells_people_what_failed_and_where_its_log_is(call, stored: Store):
    ended = call("status", "exp3")
    lines = ended.out.splitlines()
    assert lines[0].startswith("exp3: 16 of 20 trials ended (")
    assert f"failed  relu+l1 c=8 s0  {stored.runs['exp3', 14]}" in lines
    assert "  RuntimeError: disk on fire" in lines and "  log: /far/away/sweeps/exp3/trials/0014/error.txt" in lines
    assert any(line.startswith("running  relu+l1 c=6 s0  25%  L0 300") for line in lines)
    assert "next: prolu-tune pareto exp3" in ended.err


def test_status_json_is_the_document_of_the_contract(call):
    document = call("status", "cover", "--json").document
    assert document["sweep"] == "cover" and document["states"] == {"finished": 4, "pending": 196}
    assert set(document["coverage"]["relu+l1"]) == {"target", "bins", "filled", "largest_gap"}


def test_watching_a_sweep_that_has_ended_shows_it_and_ends(call):
    ended = call("status", "cover", "--watch", "--interval", "0.2")
    assert ended.code == 0 and len(ended.out.splitlines()) == 1 and "cover: 4 of 200 trials ended" in ended.out


def test_a_narrow_terminal_loses_columns_but_no_part_of_an_id(call):
    runs = call("pareto", "exp3", "--json").document["runs"]
    everything = [column.title for column in RUN_COLUMNS if column.title]
    assert aligned(runs)[0].split() == " ".join(everything).split()
    for width in (60, 80, 100, 140):
        lines = aligned(runs, width=width)
        assert all(run["run_id"] in "\n".join(lines) for run in runs)
        assert max(map(len, lines)) <= max(width, 80)
    # The learning rate is the same in all, the seed is not.
    assert " seed " in aligned(runs, width=90)[0] and " lr " not in aligned(runs, width=90)[0]
    assert len(aligned(runs, width=80)[0].split()) < len(aligned(runs, width=140)[0].split())


def test_names_of_sweeps_complete_in_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from prolu_tune.cli.options import complete_names

    monkeypatch.setenv("PROLU_STORAGE", str(tmp_path))
    assert complete_names("") == []
    for name in ("exp1", "exp3", "quickstart", "exp3~20260101-101010"):
        (tmp_path / "sweeps" / name).mkdir(parents=True)
    assert complete_names("exp") == ["exp1", "exp3"]


def test_the_dashboard_serves_the_store_on_loopback_only(stored: Store, tmp_path: Path):
    command = [sys.executable, "-m", "prolu_tune.cli.main", "dashboard", "--port", "0", "--no-browser"]
    command += ["--storage", str(stored.storage)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if "Ctrl-C" in line)
            address = line.split()[2]
            assert address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(
                f"{address}/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=prolu-tune"
            ) as answer:
                assert json.load(answer)["experiment"]["name"] == "prolu-tune"
        finally:
            process.terminate()
            code = process.wait(30)
    assert code in (143, -15)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(address, timeout=1)
        except OSError:
            break
    else:
        pytest.fail("the server outlived the verb")
    assert list(tmp_path.iterdir()) == []


def test_a_table_too_wide_for_the_terminal_gives_its_ids_lines_of_their_own():
    records = [dict.fromkeys(FIELDS) | {"run_id": f"{i:032x}", "architecture": "prolu_ste+l1", "l0": 10.0 * i} for i in (1, 2)]
    for width in (60, 80, 200):
        lines = aligned(records, width=width)
        assert max(map(len, lines)) <= width
        assert all(record["run_id"] in "\n".join(lines) for record in records), "ids are never cut"
    narrow = aligned(records, width=60)
    assert narrow[2].strip() == records[0]["run_id"] and "run_id" not in narrow[0]


def test_long_lines_break_between_words_on_a_terminal_only():
    text = "no sweep exp9 in sqlite:////a/rather/long/path/mlflow.db; there are: exp1, exp3\nsecond line"
    assert folded(text, None) == text
    lines = folded(text, 45).splitlines()
    assert "sqlite:////a/rather/long/path/mlflow.db;" in lines[1] and max(map(len, lines)) <= 45 and lines[-1] == "second line"


def test_work_is_silent_off_a_terminal_until_it_takes_long(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 1.0, 3.0, 3.0, 5.0, 14.0, 14.0])
    monkeypatch.setattr("prolu_tune.cli.progress.time.monotonic", lambda: next(clock))
    with Work() as work:
        work.show("reading")
        work.show("tokens", 1, 4)
        work.show("tokens", 2, 4)
        work.show("tokens", 3, 4)
    assert capsys.readouterr() == ("", "tokens 25%\ntokens 75%\n")


def test_on_a_terminal_work_shows_a_bar_and_leaves_nothing_behind(tmp_path: Path):
    import pty

    code = "import time\nfrom prolu_tune.cli.progress import Work\n"
    code += "with Work() as work:\n work.show('tokens', 1, 2)\n time.sleep(0.3)\n"
    main_end, other_end = pty.openpty()
    environment = {"NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "60", "PATH": "/usr/bin"}
    process = subprocess.Popen([sys.executable, "-c", code], stderr=other_end, env=environment, cwd=Path(__file__).parents[2])
    assert process.wait(60) == 0
    shown = os.read(main_end, 100_000).decode()
    assert "tokens" in shown and "50%" in shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown), "NO_COLOR"
    assert shown.rstrip().endswith("\x1b[2K"), "the line is wiped"


def test_an_axis_that_is_no_field_of_a_run_has_its_values_in_every_form(call, stored: Store):
    axes = ("pareto", "exp3", "--x", "l0", "--y", "ce_degradation_bos_kept", "--architecture", "relu+l1")
    expected = {100.0: 0.1, 40.0: 0.25, 15.0: 0.6}
    document = call(*axes, "--json").document
    assert dict(document["points"].values()) == expected
    assert set(document["points"]) == {run["run_id"] for run in document["runs"]}
    rows = list(csv.DictReader(io.StringIO(call(*axes, "--format", "csv").out)))
    assert {float(row["l0"]): float(row["ce_degradation_bos_kept"]) for row in rows} == expected
    lines = [line.split() for line in call(*axes).out.splitlines() if line.startswith("relu+l1") and "of" not in line]
    assert [line[-2] for line in lines] == ["0.6", "0.25", "0.1"]
