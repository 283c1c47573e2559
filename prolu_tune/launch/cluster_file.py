"""A cluster file of `ray up`, and the part of it that is ours: where the sweeps of the cluster are kept, and its ports.

Ours is `metadata.prolu_tune`; Ray leaves `metadata` alone.
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from prolu_tune.config.located import rule
from prolu_tune.config.trial import Frozen
from prolu_tune.config.yaml import Document, KeyPath, load_document
from prolu_tune.errors import InputError
from prolu_tune.sweep.settings import NodeType

SECTION = ("metadata", "prolu_tune")
UNFILLED = "FILL-IN"
"""Begins every value that only the owner of a cluster knows; nothing starts while one is left."""
TOKEN_SUFFIX = ".ray/auth_token"  # noqa: S105 - the end of a path, not a token
Port = Annotated[int, Field(ge=1, le=65535)]


class ClusterSettings(Frozen):
    """`metadata.prolu_tune` of a cluster file."""

    storage: str
    """Where sweeps are kept: a folder that every node sees, absolute, or a URI such as s3://bucket/folder."""
    mlflow_port: Port = 5000
    """MLflow's server on the head, on its 127.0.0.1."""
    dashboard_port: Port = 8265
    """Ray's dashboard on the head, on its 127.0.0.1."""
    ssh_port: Port = 22
    """sshd on the head."""
    python: str = "python"
    """Interpreter of the head that has the packages of requirements.lock."""

    @field_validator("storage")
    @classmethod
    def _seen_by_every_node(cls, value: str) -> str:
        if not value.startswith("/") and not re.match(r"[a-z][a-z0-9+.-]*://[^/]", value):
            raise ValueError(f"must be a folder from / on, or a URI such as s3://bucket/folder, got {value!r}")
        return value


@dataclass(frozen=True, kw_only=True)
class ClusterFile:
    """What this machine has to know of a cluster."""

    path: Path
    name: str
    provider: dict[str, Any]
    """Ray's `provider`; its `type` is among it."""
    ssh_user: str | None
    ssh_key: Path | None
    ssh_proxy: str | None
    token_file: Path | None
    """The token on this machine; None: the cluster asks for none."""
    settings: ClusterSettings
    node_types: tuple[NodeType, ...]
    """The kinds of machine it may start, those whose resources stand in the file."""

    @property
    def kind(self) -> str:
        """Ray's name of the provider: aws, gcp, local ..."""
        return str(self.provider.get("type"))

    def token(self) -> str | None:
        """Returns the token to show to the cluster, None where it asks for none.

        Raises:
            InputError: if the file with it is missing or empty.
        """
        if self.token_file is None:
            return None
        try:
            token = self.token_file.read_text().strip()
        except OSError as error:
            raise InputError(
                f"{self.path} keeps the cluster's token in {self.token_file}, which cannot be read ({error.strerror}); "
                "copy it from the machine that ran `ray up`, or make one: (umask 077; ray get-auth-token --generate)"
            ) from error
        if not token:
            raise InputError(f"{self.token_file} is empty; make a token: (umask 077; ray get-auth-token --generate)")
        return token


def read_cluster_file(path: Path) -> ClusterFile:
    """Returns the cluster that a file describes.

    Raises:
        InputError: `file:line:column`, what is wrong, remedy.
    """
    document = load_cluster_document(path)
    unfilled = unfilled_places(document)
    if unfilled:
        raise InputError("\n".join(f"{place}: {key} is still {value}; {fill_hint(value)}" for place, key, value in unfilled))
    return parse_cluster(document, path)


def load_cluster_document(path: Path) -> Document:
    """Returns a cluster file as data with positions.

    Raises:
        InputError: if there is no such file, or it is not YAML, or not one mapping with a name and a provider.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; --cluster takes the file that was given to `ray up`, such as cluster/gpu.yaml")
    document = load_document(path)
    for key, kind, example in (("cluster_name", str, "gpu"), ("provider", dict, "{type: aws, region: us-west-2}")):
        if not isinstance(document.data.get(key), kind):
            raise InputError(f"{path}: {key} is missing; write {key}: {example}, or give a file for `ray up`")
    return document


def parse_cluster(document: Document, path: Path) -> ClusterFile:
    """Returns the cluster of a document whose blanks may still be open.

    Raises:
        InputError: see `read_cluster_file`.
    """
    data = document.data
    auth = data.get("auth") or {}
    key = auth.get("ssh_private_key")
    return ClusterFile(
        path=path,
        name=data["cluster_name"],
        provider=data["provider"],
        ssh_user=auth.get("ssh_user"),
        ssh_key=Path(key).expanduser() if key else None,
        ssh_proxy=auth.get("ssh_proxy_command"),
        token_file=_token_file(data.get("file_mounts") or {}),
        settings=_settings(document),
        node_types=node_types(data),
    )


def unfilled_places(document: Document) -> list[tuple[str, str, str]]:
    """Returns (place, dotted key, value) of every value that is still to be filled in."""
    found = []

    def visit(value: Any, path: KeyPath) -> None:
        if isinstance(value, dict | list):
            for key, child in value.items() if isinstance(value, dict) else enumerate(value):
                visit(child, (*path, key))
        elif isinstance(value, str) and (blank := re.search(rf"{UNFILLED}[\w-]*", value)):
            found.append((document.values.get(path, document.source), ".".join(map(str, path)), blank[0]))

    visit(document.data, ())
    return found


def fill_hint(value: str) -> str:
    """Returns what a blank asks for, told by its own name."""
    wanted = value.removeprefix(UNFILLED).strip("-").replace("-", " ")
    return f"put your {wanted} there" if wanted else "put a value of yours there"


def node_types(data: dict[str, Any]) -> tuple[NodeType, ...]:
    """Returns the kinds of machine that a `ray up` file may start as workers and that say what they have."""
    found = []
    for name, kind in (data.get("available_node_types") or {}).items():
        resources = kind.get("resources") or {}
        most = kind.get("max_workers", 0 if name == data.get("head_node_type") else data.get("max_workers", 0))
        if most > 0 and resources:
            found.append(NodeType(name=name, cpus=resources.get("CPU", 0), gpus=resources.get("GPU", 0), most=most))
    return tuple(found)


def _token_file(file_mounts: dict[str, Any]) -> Path | None:
    for there, here in file_mounts.items():
        if there.endswith(TOKEN_SUFFIX):
            return Path(os.path.expandvars(str(here))).expanduser()
    return None


def _settings(document: Document) -> ClusterSettings:
    data: Any = document.data
    for key in SECTION:
        data = data.get(key) if isinstance(data, dict) else None
    if not isinstance(data, dict):
        raise InputError(
            f"{document.source}: {'.'.join(SECTION)} is missing; say where this cluster keeps its sweeps, such as "
            "metadata: {prolu_tune: {storage: s3://bucket/prolu}}"
        )
    try:
        return ClusterSettings.model_validate(data)
    except ValidationError as error:
        complaints = error.errors(include_url=False)
        # A misspelt key goes first: it is why another one is missing.
        first = next((complaint for complaint in complaints if complaint["type"] == "extra_forbidden"), complaints[0])
        path = (*SECTION, *first["loc"])
        place, _ = document.whereabouts(path, of_key=first["type"] == "extra_forbidden")
        name = str(first["loc"][-1])
        if first["type"] == "extra_forbidden":
            keys = list(ClusterSettings.model_fields)
            near = difflib.get_close_matches(name, keys, n=1)
            told = f"is not a key; did you mean {near[0]}?" if near else f"is not a key; choose one of {', '.join(keys)}"
        else:
            told = "is missing; add it" if first["type"] == "missing" else rule(first)
        raise InputError(f"{place}: {'.'.join(map(str, path))} {told}") from None
