"""The command line as a whole: help, exit codes, where output goes, and how little it imports."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prolu_tune import __version__
from prolu_tune.cli.main import main, make_app

HEAVY = ("torch", "ray", "mlflow", "transformers", "transformer_lens", "optuna", "pandas", "scipy")
VERBS = [command.name for command in make_app().registered_commands]
GOOD = "architectures: {relu+l1: {l1_coefficient: [1]}}\nactivations: {model: gpt2}\n"


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Returns (exit code, standard output, standard error) of one command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def spawn(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from prolu_tune.cli.main import main; main()", *arguments]


def test_root_help_starts_with_three_commands_to_copy(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "--help")
    assert (code, err) == (0, "")
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    assert [line.split()[:2] for line in lines[1:4]] == [["prolu-tune", verb] for verb in ("plan", "run", "pareto")]
    assert "..." not in out.partition("Commands:")[2]


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_examples_and_names_environment_variables(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, out, err = call(capsys, verb, "--help")
    assert (code, err) == (0, "")
    assert 2 <= out.partition("Examples:")[2].count(f"  prolu-tune {verb}") <= 4
    assert "PROLU_" in out.partition("Examples:")[2]


@pytest.mark.parametrize("verb", [None, *VERBS])
def test_help_fits_a_terminal_of_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str | None
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = call(capsys, *([verb] if verb else []), "--help")[1]
    copied = [line for line in out.splitlines() if line.strip().startswith("prolu-tune ")]
    assert copied, "there are lines to copy"
    assert max(map(len, out.splitlines())) <= 80
    broken = [
        line for line in out.splitlines() if line and not line.startswith((" ", "Usage", "Options", "Commands", "Arguments"))
    ]
    assert broken == [], "a line to copy that was broken goes on at the left edge"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_verbs_options_and_names_of_sweeps(tmp_path: Path, shell: str) -> None:
    for name in ("exp1", "exp3", "exp3~20261122"):
        (tmp_path / "sweeps" / name).mkdir(parents=True)

    def complete(*words: str) -> str:
        asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_ARGS": " ".join(words)}
        environment = os.environ | asked | {"PROLU_STORAGE": str(tmp_path), "_PROLU_TUNE_COMPLETE": f"complete_{shell}"}
        environment |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args", "_TYPER_COMPLETE_WORD_TO_COMPLETE": words[-1]}
        return subprocess.run(spawn(), env=environment, capture_output=True, text=True, check=False).stdout

    assert "pareto" in complete("prolu-tune", "par")
    assert "--max-l0" in complete("prolu-tune", "best", "exp1", "--max")
    named = complete("prolu-tune", "evaluate", "exp")
    assert "exp1" in named and "exp3" in named and "~" not in named


def test_the_completion_script_calls_back_into_the_command() -> None:
    shown = subprocess.run(spawn("--show-completion"), capture_output=True, text=True, check=False)
    # Typer finds out which shell it was called from; from none it says so.
    assert "_PROLU_TUNE_COMPLETE=complete_" in shown.stdout or "not supported" in shown.stdout + shown.stderr


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rnu", "x.yaml"], "Did you mean 'run'?"),
        (["paretto", "x"], "Did you mean 'pareto'?"),
        (["run"], "Missing argument"),
        (["run", "x.yaml", "--frsh"], "--fresh"),
        (["plan", "x.yaml", "--color"], "No such option"),
    ],
)
def test_misuse_exits_2_and_says_what_was_meant(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err and "Traceback" not in err


@pytest.mark.parametrize("verb", ["plan", "run", "cache"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"\x00\x01\x02\xff", "not text"),
        (b"a: &a [*a]", "x.yaml:1:4: aliases and anchors"),
        (b"a: [", "x.yaml:1:5: not YAML"),
        (b"- 1", "holds a list"),
        (b"architectures: {relu+l1: {l1_coefficient: [-1]}}", "x.yaml:1:44: architectures.relu+l1.l1_coefficient[0] should be"),
        (b"architectures: {relux+l1: {l1_coefficient: [1]}}", "did you mean relu+l1?"),
        (GOOD.encode() + b"training: {learning_rate: 1}", "x.yaml:3:12: training.learning_rate is not a key; did you mean lr?"),
        (GOOD.encode() + b"training: {lr: fast}", "x.yaml:3:16: training.lr should be a valid number, got 'fast'"),
        (GOOD.encode() + b"sae: {d_in: 512}", "sae.d_in is 512, but blocks.2.hook_resid_pre is 768 wide"),
        (GOOD.replace("gpt2", "gpt2, hook_name: blocks.40.hook_resid_pre").encode(), "did you mean blocks.11.hook_resid_pre?"),
        (GOOD.encode() + b"training: {precision: bfloat16}", "bfloat16 needs a GPU"),
    ],
)
def test_a_wrong_space_is_one_line_on_standard_error_and_exit_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_bytes(content)
    code, out, err = call(capsys, verb, str(path), "--storage", str(tmp_path / "runs"))
    assert (code, out) == (2, "")
    assert words in err and err.count("\n") == 1 and err.startswith(str(path))
    assert not (tmp_path / "runs").exists()


def test_a_wrong_flag_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(GOOD)
    code, out, err = call(capsys, "plan", str(path), "--set", "training.lr=-1")
    assert (code, out) == (2, "") and err.startswith("--set training.lr=-1: training.lr should be greater than 0, got -1")


@pytest.mark.parametrize(("storage", "words"), [("x.yaml", "cannot write to"), ("ftp://host/runs", "URI")])
def test_a_storage_that_is_no_folder_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(GOOD)
    code, out, err = call(capsys, "run", "x.yaml", "--storage", storage)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1


def test_color_is_a_matter_of_flag_before_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    call(capsys, "--color", "always", "plan", "missing.yaml")
    assert "NO_COLOR" not in os.environ and os.environ["FORCE_COLOR"] == "1"
    call(capsys, "--color", "never", "plan", "missing.yaml")
    assert "FORCE_COLOR" not in os.environ and os.environ["NO_COLOR"] == "1"


def cpu_seconds(command: list[str]) -> float:
    """Returns the processor time of a command: on a busy machine the clock says little about the program."""
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_help_takes_less_than_a_second_and_the_import_less_than_a_third() -> None:
    assert min(cpu_seconds(spawn("--help")) for _ in range(3)) < 1.0
    bare = min(cpu_seconds([sys.executable, "-c", "pass"]) for _ in range(3))
    assert min(cpu_seconds([sys.executable, "-c", "import prolu_tune"]) for _ in range(3)) < bare + 0.3


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "x.yaml"], ["plan", "x.yaml", "--json"], ["best", "--help"]])
def test_nothing_heavy_is_imported_for_help_and_plan(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "x.yaml").write_text(GOOD)
    code = (
        "import sys, prolu_tune\nfrom prolu_tune.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_interrupting_exits_130_without_a_traceback(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    # A test run in the background inherits an ignored SIGINT; the command is to see what a terminal gives it.
    with_signal = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    process = subprocess.Popen(
        spawn("plan", str(pipe)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **with_signal
    )
    with pipe.open("w"):  # opens when the command has: from here on it waits for text
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "") and "Traceback" not in err


def test_a_full_disk_under_the_output_exits_3_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(GOOD)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            spawn("plan", "x.yaml", "--json"), cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 3, done.stderr
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr


def test_public_names_are_there_and_others_are_not() -> None:
    import prolu_tune

    assert {"load_sae", "load_sweep", "__version__"} <= set(dir(prolu_tune))
    assert callable(prolu_tune.load_sae) and callable(prolu_tune.load_sweep)
    with pytest.raises(AttributeError, match="no attribute 'load_everything'"):
        getattr(prolu_tune, "load_everything")  # noqa: B009 - the point is that the name is looked up at run time
