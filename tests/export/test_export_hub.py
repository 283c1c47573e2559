import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from export_samples import save_sample
from stand_in_hub import Hub, HubServer

from prolu_tune.errors import InputError
from prolu_tune.export.hub import check_repo_id

TOKEN = "hf_canary_of_the_tests"


@pytest.fixture
def hub():
    server = HubServer(Hub(token=TOKEN))
    yield server
    server.shutdown()


def export(tmp_path: Path, *arguments: str, endpoint: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": token,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-m", "prolu_tune.cli.main", "export", str(tmp_path / "sae"), *arguments]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)


def test_a_folder_is_uploaded_under_its_name_with_a_card_for_the_repository(tmp_path, hub):
    save_sample(tmp_path / "sae", "prolu_ste")
    done = export(tmp_path, "ste-1", "--push-to-hub", "me/saes", "--private", "--json", endpoint=hub.url)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["url"] == f"{hub.url}/me/saes/tree/main/ste-1" and document["schema"] == 1
    stored, local = hub.hub.files["me/saes"], tmp_path / "ste-1"
    assert {path.name for path in local.iterdir()} == {"README.md", "cfg.json", "sae_weights.safetensors"}
    for file in local.iterdir():
        assert stored[f"ste-1/{file.name}"] == file.read_bytes()
    assert stored["README.md"] == (local / "README.md").read_bytes()
    assert hub.hub.private["me/saes"] is True and "prolu_ste+l1" in hub.hub.messages[0]
    again = export(tmp_path, "ste-2", "--push-to-hub", "me/saes", endpoint=hub.url)
    assert again.returncode == 0, again.stderr
    assert b"ste-1" in hub.hub.files["me/saes"]["README.md"], "a card that is there is not replaced"
    assert TOKEN not in done.stdout + done.stderr + again.stdout + again.stderr


def test_a_wrong_token_is_wrong_input_and_never_shown(tmp_path, hub):
    save_sample(tmp_path / "sae", "relu")
    done = export(tmp_path, "out", "--push-to-hub", "me/saes", endpoint=hub.url, token="hf_wrong")
    assert done.returncode == 2 and done.stdout == ""
    assert "the hub refuses (401)" in done.stderr and "hf auth login" in done.stderr
    assert "hf_wrong" not in done.stderr and "Traceback" not in done.stderr


def test_a_hub_that_does_not_answer_leaves_the_folder_and_says_how_to_go_on(tmp_path):
    save_sample(tmp_path / "sae", "relu")
    done = export(tmp_path, "out", "--push-to-hub", "me/saes", endpoint="http://127.0.0.1:9")
    assert done.returncode == 3 and done.stdout == ""
    assert "cannot be reached" in done.stderr and "--overwrite" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "out" / "cfg.json").exists()


@pytest.mark.parametrize("name", ["saes", "me/sa es", "a/b/c", "me/..", ""])
def test_a_repository_name_is_checked_before_any_work(name):
    with pytest.raises(InputError, match="--push-to-hub"):
        check_repo_id(name)
