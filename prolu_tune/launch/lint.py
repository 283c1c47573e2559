"""Checks cluster files without asking any cloud: Ray's own schema, and rules of ours about safety, versions and storage.

`python -m prolu_tune.launch.lint [FILE ...]`, without files all of `cluster/`; exit code 1 where something is wrong.
"""

import contextlib
import copy
import io
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prolu_tune.config.yaml import Document, KeyPath, load_document
from prolu_tune.errors import InputError
from prolu_tune.launch import lint_kuberay, lint_ray_up
from prolu_tune.launch.cluster_file import fill_hint, load_cluster_document, unfilled_places

LOCK = Path("requirements.lock")
Complaint = tuple[KeyPath, str]
"""Where in the file (empty: the file as a whole), and what is wrong with it and what to do."""
PIN = re.compile(r"(?<![\w.-])([A-Za-z][A-Za-z0-9._-]*)(?:\[[\w,-]+\])?==([0-9][\w.+!-]*)")
IMAGE = re.compile(r"(?:rayproject|anyscale)/ray(?:-ml|-llm)?:([\w.-]+)")
SECRET = re.compile(r"\b[0-9a-f]{40,}\b|AKIA[0-9A-Z]{16}|RAY_AUTH_TOKEN=\S|://[^/\s:@]+:[^/\s:@]+@")
"""A token of Ray, an AWS key, a token or password written out."""


def lint_file(path: Path, lock: dict[str, str]) -> list[str]:
    """Returns what is wrong with a cluster file, a line each: `file:line:column: key, what, remedy`.

    Args:
        path: A file of `ray up`, of KubeRay, or a script.
        lock: Package to version, from requirements.lock.
    """
    text = path.read_text()
    if path.suffix not in (".yaml", ".yml"):
        found = [*_text_complaints(text, lock), *_script_complaints(text)]
        return [f"{path}: {told}" for _, told in found]
    try:
        document = load_document(path)
        if "apiVersion" in document.data or "kind" in document.data:
            complaints = list(lint_kuberay.complaints(document.data, lock))
        else:
            document = load_cluster_document(path)
            complaints = [*_schema_complaints(document.data), *lint_ray_up.complaints(document, path)]
    except InputError as error:
        return str(error).splitlines()
    complaints += _text_complaints(text, lock)
    return [_line(document, place, told) for place, told in complaints]


def open_blanks(path: Path) -> list[str]:
    """Returns a line for every value of a cluster file that its owner has still to fill in."""
    if path.suffix not in (".yaml", ".yml"):
        return []
    return [f"{place}: {key}: {fill_hint(value)}" for place, key, value in unfilled_places(load_document(path))]


def read_lock(path: Path) -> dict[str, str]:
    """Returns the version of every package in requirements.lock."""
    pairs = (line.strip().partition("==") for line in path.read_text().splitlines() if "==" in line)
    return {_canonical(name): version for name, _, version in pairs}


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 if nothing is wrong."""
    given = sys.argv[1:] if arguments is None else arguments
    paths = [Path(name) for name in given] or sorted([*Path("cluster").glob("*.yaml"), *Path("cluster").glob("*.sh")])
    if not paths or not LOCK.is_file():
        print("no cluster files, or no requirements.lock to compare them with; call this in the repository", file=sys.stderr)
        return 2
    lock, wrong = read_lock(LOCK), 0
    for path in paths:
        complaints = lint_file(path, lock)
        wrong += len(complaints)
        print("\n".join(complaints) if complaints else f"{path}: good")
        for blank in [] if complaints else open_blanks(path):
            print(f"  to fill in before `ray up`: {blank}")
    return 1 if wrong else 0


def _line(document: Document, path: KeyPath, told: str) -> str:
    place, _ = document.whereabouts(path, of_key=True)
    key = ".".join(map(str, path))
    return f"{place}: {key + ': ' if key else ''}{told}"


def _schema_complaints(data: dict[str, Any]) -> Iterator[Complaint]:
    """Yields what Ray itself finds wrong with a file of `ray up`."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            validate_config(prepare_config(copy.deepcopy(data)))
    except ValidationError as error:
        yield tuple(error.absolute_path), f"Ray refuses it: {error.message.splitlines()[0][:200]}"
    except Exception as error:  # Ray raises what it likes here, click's Abort among it
        yield ("provider",), f"Ray refuses the file: {type(error).__name__} {str(error).splitlines()[:1]}"


def _text_complaints(text: str, lock: dict[str, str]) -> Iterator[Complaint]:
    """Yields versions that are not the lock's, and secrets; comments count, for people copy from them."""
    for name, version in PIN.findall(text):
        locked = lock.get(_canonical(name))
        if locked is not None and locked != version:
            yield (), f"{name}=={version}, but requirements.lock has {locked}; write that, or install from the lock"
    for tag in IMAGE.findall(text):
        if tag.split("-")[0] != lock.get("ray"):
            yield (
                (),
                f"image tag {tag}, but requirements.lock has ray {lock.get('ray')}; write {lock.get('ray')}-py311-gpu or -cpu",
            )
    if found := SECRET.search(text):
        yield (), f"a secret seems to be written out ({found[0][:6]}...); keep it in a file that only you read and name that"


def _script_complaints(text: str) -> Iterator[Complaint]:
    """Yields what a script that starts Ray must have."""
    if "ray start" in text and "RAY_AUTH_MODE=token" not in text:
        yield (), "starts Ray without RAY_AUTH_MODE=token; anyone who reaches the machine could run code there"
    if re.search(r"dashboard-host[= ](?!127\.0\.0\.1|localhost)", text):
        yield (), "shows the dashboard to other machines; write --dashboard-host=127.0.0.1"


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
