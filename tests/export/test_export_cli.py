import json

import pytest
from export_samples import D_SAE, save_sample
from stored_sweeps import Store, stored

from prolu_tune.cli.main import main
from prolu_tune.errors import InputError
from prolu_tune.results.checkpoints import sae_folder
from prolu_tune.sae.folder import load_sae_folder

__all__ = ["stored"]


def leave(*arguments: str) -> int:
    """Returns the exit code of a command."""
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    return int(left.value.code or 0)


def test_a_run_id_is_exported_from_the_tracking_store(tmp_path, stored: Store, capsys):
    run_id = stored.runs["exp3", 6]
    assert leave("export", run_id, str(tmp_path / "out"), "--tracking-uri", stored.uri, "--json") == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["schema"] == 1 and document["run"] == run_id and document["format"] == "saelens"
    assert document["files"] == ["README.md", "cfg.json", "sae_weights.safetensors"] and document["url"] is None
    assert "prolu_ste+l1" in err


def test_a_folder_is_exported_and_the_loading_line_printed(tmp_path, capsys):
    save_sample(tmp_path / "sae", "prolu_ste")
    target = tmp_path / "out"
    assert leave("export", str(tmp_path / "sae"), str(target), "--format", "prolu") == 0
    assert capsys.readouterr().out == f"from prolu_tune import load_sae; sae = load_sae({str(target)!r})\n"
    assert load_sae_folder(target).d_sae == D_SAE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing-here", "out"], "nor an MLflow run id"),
        (["sae", "out", "--format", "dictionary_learning"], "per_token"),
        (["sae", "out", "--normalized-inputs"], "--normalized-inputs has no effect"),
        (["sae", "out", "--private"], "--private has no effect"),
        (["sae", "out", "--push-to-hub", "me"], "USER/REPO"),
        (["sae", "sae/config.json"], "is a file"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    save_sample(tmp_path / "sae", "relu")
    assert leave("export", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["sae"]


def test_a_run_without_an_autoencoder_is_refused(stored: Store):
    with (
        pytest.raises(InputError, match="holds no trained SAE"),
        sae_folder(stored.runs["exp3", 14], tracking_uri=stored.uri),
    ):
        pass
