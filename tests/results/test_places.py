"""Folders and URIs as storage."""

from pathlib import Path

import pytest

from prolu_tune.errors import SurroundingsError
from prolu_tune.results.places import local_storage, scratch_folder, storage_uri
from prolu_tune.results.store import resolve_tracking_uri


@pytest.mark.parametrize(
    ("storage", "uri"),
    [
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        (Path("s3://bucket/prefix/"), "s3://bucket/prefix"),
        ("gs://bucket", "gs://bucket"),
        ("file:///mnt/x", "file:///mnt/x"),
        ("/mnt/shared", None),
        (Path("prolu_runs"), None),
        ("s3", None),
    ],
)
def test_a_bucket_is_told_from_a_folder_also_when_a_path_has_eaten_a_slash(storage: str | Path, uri: str | None) -> None:
    assert storage_uri(storage) == uri


def test_a_bucket_has_a_folder_of_its_own_among_the_scratch_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROLU_SCRATCH", str(tmp_path))
    monkeypatch.delenv("PROLU_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    one, two = local_storage("s3://bucket/a"), local_storage("s3://bucket/b")
    assert one != two and one.parent == two.parent == tmp_path / "storage"
    assert local_storage(Path("s3://bucket/a")) == one
    assert resolve_tracking_uri(None, Path("s3://bucket/a")) == f"sqlite:///{one / 'mlflow.db'}"


def test_a_place_where_no_folder_can_be_made_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROLU_SCRATCH", str(tmp_path / "file" / "scratch"))
    with pytest.raises(SurroundingsError, match="set PROLU_SCRATCH to a folder on a local disk"):
        scratch_folder()
