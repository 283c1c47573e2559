"""Storage of many nodes: folders mirrored to a bucket, and the check that all nodes see the same storage."""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyarrow import fs

from prolu_tune.durable import replace_file
from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.results.store import without_password

MANIFEST = "manifest.json"
"""In the bucket: which files a folder has. Written last, so that a cut upload leaves the folder as it was."""
MARKER = ".mirrored"
"""On disk: the digest of the manifest that this folder was last equal to."""
BLOCK = 8 * 2**20


class ChangedElsewhereError(SurroundingsError):
    """A copy is no longer what this machine made it."""


class MirroredFolder:
    """A folder on this machine's disk and its copy under a URI that all nodes reach (s3://, gs://, or file://).

    Contents are stored under their SHA-256, then a manifest names them. So whatever is cut, what the manifest says is whole,
    and a file is sent once however often the folder is pushed.
    """

    def __init__(self, folder: Path, uri: str, *, names: Iterable[str] | None = None) -> None:
        """Opens nothing that has to answer yet.

        Args:
            folder: on disk; need not exist.
            uri: of the copy.
            names: files that are mirrored, those that exist; None: all below the folder but temporary ones.

        Raises:
            InputError: if the URI is none that can be opened.
        """
        self.folder = folder
        self.uri = uri.rstrip("/")
        self._names = None if names is None else tuple(names)
        try:
            self._remote, self._path = fs.FileSystem.from_uri(self.uri)
        except (ValueError, OSError) as error:
            raise InputError(
                f"--storage {without_password(uri)} cannot be opened ({error}); give a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
            ) from error

    def push(self) -> bool:
        """Makes the copy equal to the folder; returns whether there was anything to send.

        Raises:
            ChangedElsewhereError: if the bucket holds what another machine put there since.
            SurroundingsError: if the bucket does not take it.
        """
        try:
            before = self._manifest()
            if digest(before) not in self._markers():
                raise ChangedElsewhereError(
                    f"{self._shown} was changed by another machine since this one read it; "
                    "only one driver may run a sweep: stop the other one, then run the same command again"
                )
            files = {name: self._send(name, before) for name in self._listed()}
            now = {name: entry for name, entry in files.items() if entry is not None}
            if now == before:
                return False
            # Both, until it is certain which: a process killed here must know its own copy again.
            replace_file(self.folder / MARKER, [f"{digest(before)} {digest(now)}".encode()])
            self.write(MANIFEST, json.dumps(now, sort_keys=True).encode())
            replace_file(self.folder / MARKER, [digest(now).encode()])
            for old in {entry["sha256"] for entry in before.values()} - {entry["sha256"] for entry in now.values()}:
                self._remote.delete_file(f"{self._path}/files/{old}")
        except OSError as error:
            raise self._failed("take files", error) from error
        return True

    def pull(self) -> bool:
        """Makes the folder equal to the copy unless it is the newer one; returns whether it changed.

        It is the newer one if it was equal to this very copy before: then whatever else it holds came later.

        Raises:
            SurroundingsError: if the bucket does not give it, or what it gives is damaged.
        """
        try:
            manifest = self._manifest()
            if not manifest or digest(manifest) in self._markers():
                return False
            self._clear()
            for name, entry in manifest.items():
                self._fetch(name, entry)
            replace_file(self.folder / MARKER, [digest(manifest).encode()])
        except OSError as error:
            raise self._failed("give files", error) from error
        return True

    def fetch(self, name: str) -> bool:
        """Brings one file of the copy, whatever else the folder holds; returns whether there is one."""
        try:
            entry = self._manifest().get(name)
            if entry is not None:
                self._fetch(name, entry)
        except FileNotFoundError:
            return False  # replaced by a newer one between manifest and file
        except OSError as error:
            raise self._failed("give files", error) from error
        return entry is not None

    def read(self, name: str) -> bytes | None:
        """Returns an object beside the folder's files, None if there is none."""
        try:
            with self._remote.open_input_stream(f"{self._path}/{name}") as stream:
                return stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failed("give files", error) from error

    def write(self, name: str, content: bytes) -> None:
        """Puts an object beside the folder's files."""
        try:
            self._make_folder(f"{self._path}/{name}")
            with self._remote.open_output_stream(f"{self._path}/{name}") as stream:
                stream.write(content)
        except OSError as error:
            raise self._failed("take files", error) from error

    @property
    def _shown(self) -> str:
        return without_password(self.uri)

    def _manifest(self) -> dict[str, dict[str, Any]]:
        content = self.read(MANIFEST)
        if content is None:
            return {}
        try:
            document = json.loads(content)
            entries = {
                str(name): {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])} for name, entry in document.items()
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SurroundingsError(f"{self._shown}/{MANIFEST} is damaged; remove it to begin there anew") from error
        for name in entries:
            if name.startswith("/") or ".." in Path(name).parts:
                raise SurroundingsError(f"{self._shown}/{MANIFEST} names {name!r}, which leads out of the folder; remove it")
        return entries

    def _markers(self) -> list[str]:
        marker = self.folder / MARKER
        return marker.read_text().split() if marker.exists() else [digest({})]

    def _listed(self) -> list[str]:
        if self._names is not None:
            return [name for name in self._names if (self.folder / name).is_file()]
        found = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
        names = [path.relative_to(self.folder) for path in found]
        return [str(name) for name in names if name.name != MARKER and not any(_temporary(part) for part in name.parts)]

    def _clear(self) -> None:
        if self._names is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for name in self._names:
            (self.folder / name).unlink(missing_ok=True)

    def _send(self, name: str, before: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
        """Sends a file unless the copy has it; None if it is gone. One descriptor throughout: it may be replaced meanwhile."""
        try:
            file = (self.folder / name).open("rb")
        except FileNotFoundError:
            return None
        with file:
            size, sha256 = os.fstat(file.fileno()).st_size, hashlib.sha256()
            for block in _blocks(file, size):
                sha256.update(block)
            entry = {"bytes": size, "sha256": sha256.hexdigest()}
            if entry not in before.values():
                file.seek(0)
                target = f"{self._path}/files/{entry['sha256']}"
                self._make_folder(target)
                with self._remote.open_output_stream(target) as stream:
                    for block in _blocks(file, size):
                        stream.write(block)
        return entry

    def _fetch(self, name: str, entry: dict[str, Any]) -> None:
        path, sha256, size = self.folder / name, hashlib.sha256(), 0
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        with self._remote.open_input_stream(f"{self._path}/files/{entry['sha256']}") as stream, temporary.open("wb") as out:
            while block := stream.read(BLOCK):
                sha256.update(block)
                size += len(block)
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
        if (size, sha256.hexdigest()) != (entry["bytes"], entry["sha256"]):
            temporary.unlink()
            raise SurroundingsError(
                f"{self._shown}/files/{entry['sha256']} is damaged; remove {self._shown} to begin there anew"
            )
        temporary.replace(path)

    def _make_folder(self, target: str) -> None:
        if self._remote.type_name == "local":
            self._remote.create_dir(target.rsplit("/", 1)[0], recursive=True)

    def _failed(self, what: str, error: OSError) -> SurroundingsError:
        reason = str(error).split(" (Request ID")[0].strip().splitlines()[0]
        return SurroundingsError(f"{self._shown} does not {what} ({reason}); mend that, then run the same command again")


def digest(manifest: dict[str, dict[str, Any]]) -> str:
    """Returns a manifest's SHA-256."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


TOKEN = "storage-token"  # noqa: S105 - the name of a file
"""In a sweep's folder: what the present driver wrote to see whether every node reads it."""


def write_token(place: str, token: str) -> None:
    """Puts a token where every node should see it: a folder, or a folder's URI.

    Raises:
        SurroundingsError: if it cannot be written.
    """
    if "://" in place:
        MirroredFolder(Path(), place).write(TOKEN, token.encode())
    else:
        replace_file(Path(place) / TOKEN, [token.encode()])


def check_storage(place: str, token: str) -> str | None:
    """Returns why this machine does not see the place that the driver wrote `token` into; None if it does and can write."""
    if "://" in place:
        copy = MirroredFolder(Path(), place)
        try:
            if copy.read(TOKEN) != token.encode():
                return f"its {without_password(place)} is another"
            copy.write(f"nodes/{socket.gethostname()}", token.encode())
        except SurroundingsError as error:
            return str(error)
        return None
    path = Path(place)
    try:
        if not path.is_dir():
            return f"{place} does not exist there"
        if (path / TOKEN).read_text() != token:
            return f"its {place} is another folder"
        probe = path / f".node-{socket.gethostname()}-{os.getpid()}"
        probe.write_text(token)
        probe.unlink()
    except FileNotFoundError:
        return f"its {place} is another folder"
    except OSError as error:
        return f"{place}: {error.strerror}"
    return None


def _blocks(file: Any, size: int) -> Iterable[bytes]:
    while size > 0:
        block = file.read(min(BLOCK, size))
        if not block:
            return
        size -= len(block)
        yield block


def _temporary(part: str) -> bool:
    return part.endswith((".tmp", ".old", ".damaged"))
