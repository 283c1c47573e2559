"""Folders mirrored to a file system that all nodes reach: whole or not there, whoever is cut off when."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.sweep.shared import MANIFEST, MARKER, TOKEN, MirroredFolder, check_storage, write_token


def _files(folder: Path) -> dict[str, str]:
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != MARKER]
    return {str(path.relative_to(folder)): path.read_text() for path in found}


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return (tmp_path / "bucket").as_uri()


def test_what_one_machine_pushes_another_pulls(tmp_path: Path, uri: str) -> None:
    _write(tmp_path / "a", {"metrics.jsonl": "1\n", "sae/config.json": "{}", "sae/new.tmp": "half"})
    assert MirroredFolder(tmp_path / "a", uri).push()
    _write(tmp_path / "b", {"stale": "of an older attempt here"})
    assert MirroredFolder(tmp_path / "b", uri).pull()
    assert _files(tmp_path / "b") == {"metrics.jsonl": "1\n", "sae/config.json": "{}"}


def test_what_did_not_change_is_not_sent_again_and_what_is_no_longer_named_goes(tmp_path: Path, uri: str) -> None:
    folder, objects = tmp_path / "a", tmp_path / "bucket" / "files"
    _write(folder, {"one": "1", "two": "2"})
    mirror = MirroredFolder(folder, uri)
    mirror.push()
    times = {path.name: path.stat().st_mtime_ns for path in objects.iterdir()}
    assert not mirror.push()
    (folder / "two").write_text("22")
    assert mirror.push()
    after = {path.name: path.stat().st_mtime_ns for path in objects.iterdir()}
    assert len(after) == 2
    assert len(times.items() & after.items()) == 1


def test_an_upload_cut_before_its_manifest_leaves_the_state_before(tmp_path: Path, uri: str) -> None:
    folder, manifest = tmp_path / "a", tmp_path / "bucket" / MANIFEST
    _write(folder, {"checkpoint-1": "old", "metrics.jsonl": "1\n"})
    mirror = MirroredFolder(folder, uri)
    mirror.push()
    before, old_objects = manifest.read_bytes(), shutil.copytree(tmp_path / "bucket" / "files", tmp_path / "objects")
    _write(folder, {"checkpoint-2": "new", "metrics.jsonl": "1\n2\n"})
    mirror.push()
    # As it is when the machine goes after the objects are sent: nothing is removed before the manifest stands.
    manifest.write_bytes(before)
    shutil.copytree(old_objects, tmp_path / "bucket" / "files", dirs_exist_ok=True)
    MirroredFolder(tmp_path / "b", uri).pull()
    assert _files(tmp_path / "b") == {"checkpoint-1": "old", "metrics.jsonl": "1\n"}


def test_a_folder_that_went_on_since_it_was_pushed_is_kept(tmp_path: Path, uri: str) -> None:
    folder = tmp_path / "a"
    _write(folder, {"metrics.jsonl": "1\n"})
    MirroredFolder(folder, uri).push()
    _write(folder, {"metrics.jsonl": "1\n2\n"})
    assert not MirroredFolder(folder, uri).pull()
    assert _files(folder) == {"metrics.jsonl": "1\n2\n"}


def test_a_folder_that_another_machine_overtook_is_replaced_whole(tmp_path: Path, uri: str) -> None:
    first, second = MirroredFolder(tmp_path / "a", uri), MirroredFolder(tmp_path / "b", uri)
    _write(tmp_path / "a", {"checkpoint-1": "1"})
    first.push()
    _write(tmp_path / "a", {"never-sent": "x"})
    second.pull()
    (tmp_path / "b" / "checkpoint-1").unlink()
    _write(tmp_path / "b", {"checkpoint-2": "2"})
    second.push()
    with pytest.raises(SurroundingsError, match="changed by another machine"):
        first.push()
    first.pull()
    assert _files(tmp_path / "a") == {"checkpoint-2": "2"}


def test_a_machine_killed_between_manifest_and_marker_knows_its_own_copy_again(tmp_path: Path, uri: str) -> None:
    folder = tmp_path / "a"
    _write(folder, {"one": "1"})
    mirror = MirroredFolder(folder, uri)
    mirror.push()
    old = (folder / MARKER).read_text()
    (folder / "one").write_text("2")
    mirror.push()
    (folder / MARKER).write_text(f"{old} {(folder / MARKER).read_text()}")
    (folder / "one").write_text("3")
    assert not mirror.pull()
    assert mirror.push()


def test_an_altered_object_is_refused(tmp_path: Path, uri: str) -> None:
    _write(tmp_path / "a", {"one": "1"})
    MirroredFolder(tmp_path / "a", uri).push()
    for path in (tmp_path / "bucket" / "files").iterdir():
        path.write_text("7")
    with pytest.raises(SurroundingsError, match="is damaged"):
        MirroredFolder(tmp_path / "b", uri).pull()
    assert _files(tmp_path / "b") == {}


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "a/../../escape"])
def test_a_manifest_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path, uri: str) -> None:
    _write(tmp_path / "bucket", {MANIFEST: json.dumps({name: {"bytes": 1, "sha256": "0" * 64}})})
    with pytest.raises(SurroundingsError, match="leads out"):
        MirroredFolder(tmp_path / "b", uri).pull()


def test_only_named_files_travel_and_are_replaced(tmp_path: Path, uri: str) -> None:
    _write(tmp_path / "a", {"space.json": "{}", "lock": "a"})
    MirroredFolder(tmp_path / "a", uri, names=("space.json", "tracked")).push()
    _write(tmp_path / "b", {"tracked": "old", "lock": "b"})
    MirroredFolder(tmp_path / "b", uri, names=("space.json", "tracked")).pull()
    assert _files(tmp_path / "b") == {"space.json": "{}", "lock": "b"}


def test_a_uri_nobody_can_open_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened"):
        MirroredFolder(tmp_path, "ftp://somewhere/else")


def test_a_machine_with_another_folder_at_the_same_place_is_told_apart(tmp_path: Path) -> None:
    write_token(str(tmp_path), "token of the driver")
    assert check_storage(str(tmp_path), "token of the driver") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [TOKEN]
    (tmp_path / TOKEN).write_text("another driver's")
    assert "another folder" in str(check_storage(str(tmp_path), "token of the driver"))
    (tmp_path / TOKEN).unlink()
    assert "another folder" in str(check_storage(str(tmp_path), "token of the driver"))
    assert "does not exist there" in str(check_storage(str(tmp_path / "none"), "token of the driver"))


@pytest.fixture
def bucket() -> Iterator[str]:
    """A real S3 server on this machine with one bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(os.environ)
    os.environ.update(
        AWS_ACCESS_KEY_ID="id",
        AWS_SECRET_ACCESS_KEY="secret",
        AWS_DEFAULT_REGION="us-east-1",
        AWS_ENDPOINT_URL=f"http://{host}:{port}",
    )
    try:
        boto3.client("s3").create_bucket(Bucket="sweeps")
        yield "s3://sweeps/prolu"
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.stop()


def test_on_s3_it_is_the_same(tmp_path: Path, bucket: str) -> None:
    _write(tmp_path / "a", {"metrics.jsonl": "1\n", "sae/config.json": "{}"})
    mirror = MirroredFolder(tmp_path / "a", bucket)
    assert mirror.read("driver.json") is None
    assert mirror.push()
    assert not mirror.push()
    (tmp_path / "a" / "metrics.jsonl").write_text("1\n2\n")
    assert mirror.push()
    other = MirroredFolder(tmp_path / "b", bucket)
    assert other.pull()
    assert _files(tmp_path / "b") == {"metrics.jsonl": "1\n2\n", "sae/config.json": "{}"}
    assert other.fetch("metrics.jsonl")
    assert not other.fetch("error.txt")
    write_token(bucket, "token")
    assert check_storage(bucket, "token") is None
    assert "s3://nowhere/prolu is another" in str(check_storage("s3://nowhere/prolu", "token"))
    with pytest.raises(SurroundingsError, match="NO_SUCH_BUCKET"):
        write_token("s3://nowhere/prolu", "token")
