"""Where storage is on this machine: a folder, or for a bucket's URI a folder on this machine's own disk."""

import getpass
import hashlib
import os
import re
import socket
import stat
from pathlib import Path

from prolu_tune.errors import SurroundingsError

BUCKET = re.compile(r"(s3|gs|gcs|file):/+(?=[^/])")
"""A Path of `s3://bucket` reads `s3:/bucket`. `file` is for a mount that is to be treated like a bucket."""


def storage_uri(storage: str | Path) -> str | None:
    """Returns the URI if the storage is a bucket, with two slashes however many are left of them; None for a folder."""
    text = str(storage)
    found = BUCKET.match(text)
    if found is None:
        return None
    slashes = "///" if found[1] == "file" else "//"
    return f"{found[1]}:{slashes}{text[found.end() :]}".rstrip("/")


def local_storage(storage: str | Path) -> Path:
    """Returns the folder of a storage on this machine: the folder itself, or for a bucket one among the scratch files.

    Raises:
        SurroundingsError: if there is no place for scratch files.
    """
    uri = storage_uri(storage)
    if uri is None:
        return Path(storage).expanduser().absolute()
    return scratch_folder() / "storage" / hashlib.sha256(uri.encode()).hexdigest()[:16]


def scratch_folder() -> Path:
    """Returns this machine's own folder for what no other machine needs: PROLU_SCRATCH, or one of the user's in /var/tmp.

    Raises:
        SurroundingsError: if it cannot be made or belongs to somebody else.
    """
    named = os.environ.get("PROLU_SCRATCH")
    folder = Path(named).expanduser() if named else Path("/var/tmp") / f"prolu-tune-{getpass.getuser()}"  # noqa: S108 - owner checked
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise SurroundingsError(
            f"cannot make the scratch folder {folder} on {socket.gethostname()} ({error.strerror}); "
            "set PROLU_SCRATCH to a folder on a local disk there"
        ) from error
    if named is None and (not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid()):
        raise SurroundingsError(
            f"{folder} on {socket.gethostname()} belongs to somebody else; set PROLU_SCRATCH to another folder"
        )
    return folder
