"""What runs on the head of a cluster: the driver of a sweep, as a Ray job, told by the `job.json` that came with it."""

import importlib.metadata
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.launch.events import EventScreen
from prolu_tune.sweep.settings import NodeType

SPEC_FILE = "job.json"


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A sweep as a cluster is asked for it."""

    space_file: str
    """The search space, beside `job.json`."""
    name: str
    overrides: list[str]
    """As given to --set."""
    storage: str
    """As the cluster sees it: a folder or a URI."""
    tracking_uri: str | None
    """As the head sees it; None: the head's own PROLU_TRACKING_URI, or a database in the storage folder."""
    fresh: bool
    retry_failed: bool
    accept_numerics: bool
    node_types: list[NodeType]
    requirements: list[str]
    """What this version of prolu-tune needs, in the words of its package."""

    def to_json(self) -> str:
        """Returns the text of `job.json`."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "JobSpec":
        """Returns what `to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        data["node_types"] = [NodeType(**kind) for kind in data["node_types"]]
        return cls(**data)


def main() -> None:
    """Runs the sweep of `job.json` and leaves the process with the sweep's exit code."""
    screen = EventScreen(sys.stdout)
    try:
        exit_code, message = _run(JobSpec.from_json(Path(SPEC_FILE).read_text()), screen)
    except (InputError, SurroundingsError) as error:
        exit_code, message = error.exit_code, str(error)
    screen.end(exit_code, message)
    sys.exit(exit_code)


def _run(spec: JobSpec, screen: EventScreen) -> tuple[int, str | None]:
    screen.phase("starting")
    check_requirements(spec.requirements)

    from prolu_tune.search.space import load_space
    from prolu_tune.sweep.runner import run_sweep

    space = load_space(spec.space_file, overrides=spec.overrides, name=spec.name)
    outcome = run_sweep(
        space,
        storage=storage_of(spec.storage),
        tracking_uri=spec.tracking_uri,
        address=os.environ.get("RAY_ADDRESS", "auto"),
        fresh=spec.fresh,
        retry_failed=spec.retry_failed,
        accept_numerics=spec.accept_numerics,
        screen=screen,
        node_types=spec.node_types,
    )
    return outcome.exit_code, outcome.message


def storage_of(storage: str) -> Any:
    """Returns the storage as `run_sweep` takes it: a folder as a path, a URI as it is."""
    return Path(storage) if storage.startswith("/") else storage


def check_requirements(requirements: list[str]) -> None:
    """Checks that the packages of this machine are those that this version of prolu-tune needs.

    Raises:
        SurroundingsError: naming those that are missing or of another version.
    """
    wrong = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing (needed: {requirement.specifier or 'any'})")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version} (needed: {requirement.specifier})")
    if wrong:
        raise SurroundingsError(
            f"the packages of the cluster's head are not those that prolu-tune needs: {'; '.join(wrong)}; "
            "the cluster file installs requirements.lock: run `ray up` with it again, then the same command"
        )


if __name__ == "__main__":
    main()
