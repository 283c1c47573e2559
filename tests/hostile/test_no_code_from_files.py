"""Nothing in the package reads a pickle, evaluates text, or lets a library do so; names from a server stay names."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from events import operations as op

from prolu_tune.errors import InputError
from prolu_tune.results.checkpoints import _download
from prolu_tune.sae.folder import load_sae_folder

PACKAGE = Path(__file__).parents[2] / "prolu_tune"
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "jsonpickle"}
CALLS = {
    *(
        "eval",
        "exec",
        "compile",
        "__import__",
        "torch.load",
        "torch.jit.load",
        "torch.package.PackageImporter",
    ),
    *(
        "yaml.load",
        "yaml.load_all",
        "yaml.unsafe_load",
        "yaml.full_load",
        "pd.read_pickle",
        "pandas.read_pickle",
        "os.system",
        "os.popen",
    ),
    *(
        "ray.cloudpickle.loads",
        "Tuner.restore",
        "tune.Tuner.restore",
        "datasets.load_from_disk",
        "pa.deserialize",
        "pa.read_serialized",
    ),
}


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", ast.unparse(node.func), node


def test_no_module_imports_what_reads_pickles() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            words = {word for name in (*names, module) for word in name.split(".")}
            found += (
                [f"{path.relative_to(PACKAGE)}:{node.lineno}" for _ in words & MODULES] if isinstance(node, ast.stmt) else []
            )
    assert found == []


def test_no_call_runs_what_it_reads() -> None:
    assert [where for where, name, _ in _calls() if name in CALLS] == []


def test_keywords_that_let_code_in_say_no() -> None:
    wanted = {"weights_only": True, "allow_pickle": False, "trust_remote_code": False, "shell": False}
    wrong = []
    for where, _, call in _calls():
        for keyword in call.keywords:
            if keyword.arg in wanted and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is wanted[keyword.arg]
            ):
                wrong.append(f"{where} {keyword.arg}")
    assert wrong == []


def test_data_sets_are_read_as_parquet_json_and_text_only() -> None:
    from prolu_tune.activations.documents import _READERS, local_files

    assert set(_READERS) == {"parquet", "json", "text"}
    for name in ("a.pkl", "a.pickle", "a.arrow", "a.pt", "a.npy", "a.py", "dataset_infos"):
        with pytest.raises(InputError):
            local_files(str(Path(__file__).parent / name))


def test_the_check_itself_sees_what_it_looks_for() -> None:
    tree = ast.parse("import torch\ntorch.load(x)\nyaml.load(y)\n")
    assert [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)] == ["torch.load", "yaml.load"]
    assert {"torch.load", "yaml.load"} <= CALLS


class _Server:
    """A tracking server whose names of artifacts lead elsewhere."""

    def __init__(self, source: Path, names: list[str], landing: Path | None = None) -> None:
        self._source = source
        self._names = names
        self._landing = landing

    def list_artifacts(self, run_id: str, path: str) -> list[SimpleNamespace]:
        """Returns what the server claims to have."""
        return [SimpleNamespace(path=name) for name in self._names]

    def download_artifacts(self, run_id: str, path: str, folder: str) -> str:
        """Puts one artifact below the folder, as MLflow's client does, or where a careless client would."""
        target = self._landing or Path(folder) / Path(path).name
        shutil.copyfile(self._source / Path(path).name, target)
        return str(target)


def test_artifact_names_of_a_server_do_not_choose_where_files_land(tmp_path: Path) -> None:
    op.save(tmp_path / "made", 0)
    source, folder = tmp_path / "made" / "sae", tmp_path / "download"
    for names in (
        ["sae/../../../evil", "/etc/cron.d/evil", "sae/sae.safetensors", "sae/config.json"],
        ["../../sae.safetensors", "/config.json"],
    ):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        found = _download(_Server(source, names), "sqlite://", "0" * 32, folder)  # type: ignore[arg-type] - stands in for MLflow's client
        assert sorted(path.relative_to(tmp_path).as_posix() for path in folder.rglob("*") if path.is_file()) == [
            "download/sae/config.json",
            "download/sae/sae.safetensors",
        ]
        assert load_sae_folder(found).d_in == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["download", "made"]
