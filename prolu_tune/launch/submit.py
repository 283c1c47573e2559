"""Hands a sweep to a cluster as a Ray job, or joins the job that runs it already, and follows it on this screen."""

import hashlib
import importlib.metadata
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prolu_tune
from prolu_tune.errors import InputError, SurroundingsError
from prolu_tune.launch.events import EventClock, EventPlayer
from prolu_tune.launch.find import Target
from prolu_tune.launch.follow import Follower, left_words
from prolu_tune.launch.job import SPEC_FILE, JobSpec
from prolu_tune.launch.jobs import connect, running_sweeps, server_errors, submission_id, sweep_jobs
from prolu_tune.launch.tunnel import Tunnel
from prolu_tune.results.records import Record
from prolu_tune.results.store import experiment_name
from prolu_tune.screen.screen import make_screen
from prolu_tune.search.space import SearchSpace

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

MAX_PACKAGE_BYTES = 50_000_000
"""More than this beside our code means that something has slipped into the package's folder."""
STOP_WAIT_S = 60
"""How long trials may take to save before Ray ends a job that was asked to stop."""
NO_AGENT_S = 120.0
"""How long after its start a head may lack the process that takes jobs."""
LOOK_EVERY_S = 0.5
DIGEST = "prolu_digest"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A sweep that a person wants to run on a cluster."""

    space_file: Path
    space: SearchSpace
    overrides: Sequence[str]
    storage: str | None
    """As given; None: the cluster file's."""
    tracking_uri: str | None
    """As given; None: MLflow's server on the head."""
    fresh: bool
    retry_failed: bool
    accept_numerics: bool

    def digest(self) -> str:
        """Returns what tells two sweeps of one name apart."""
        return hashlib.sha256(json.dumps(self.space.identity(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class RemoteOutcome:
    """How a sweep on a cluster stood when this machine left it."""

    exit_code: int
    records: list[Record]
    message: str | None = None


@contextmanager
def reached(target: Target) -> Iterator[str]:
    """Yields the URL of a cluster's job server, through a tunnel where there is a cluster file."""
    if target.cluster is None or target.host is None:
        assert target.address is not None
        yield target.address
        return
    port = target.cluster.settings.dashboard_port
    with Tunnel(target.cluster, target.host, [port]) as tunnel:
        yield tunnel.url(port)


def run_on_cluster(request: Request, target: Target) -> RemoteOutcome:
    """Returns how the sweep ended, or how it stood when Ctrl-C was pressed here; the sweep goes on then.

    Raises:
        InputError: the space cannot run there, or another sweep of this name does.
        SurroundingsError: the cluster does not answer.
    """
    spec = job_spec(request, target)
    check_fits(request.space, target)
    clock = EventClock()
    screen = make_screen(clock=clock.seconds, time_of_day=clock.time_of_day)
    player = EventPlayer(screen, clock, target.flag)
    try:
        screen.note(f"on {target.label}; --address local would run it on this machine")
        with reached(target) as url:
            client = connect(target, url)
            job, joined = start_job(client, target, request, spec)
        screen.note(f"{'joined' if joined else 'started'} job {job}; Ctrl-C leaves it running there")
        follower = Follower(target, job, player, screen)
        exit_code = follower.run()
    finally:
        screen.stop()
    if exit_code is None:
        print(left_words(target, request.space.name), file=sys.stderr)
        return RemoteOutcome(130, player.records)
    return RemoteOutcome(exit_code, player.records, player.message)


def job_spec(request: Request, target: Target) -> JobSpec:
    """Returns what the head is told.

    Raises:
        InputError: if nothing says where the sweep is to be kept, or the space names a file of this machine.
    """
    settings = target.cluster.settings if target.cluster is not None else None
    storage = request.storage or (settings.storage if settings is not None else None)
    if storage is None:
        raise InputError(
            f"nothing says where {target.label} keeps its sweeps; give --storage (a folder that all its machines see, or a "
            "URI), or --cluster with the cluster's file"
        )
    if "://" not in storage and not storage.startswith("/"):
        raise InputError(f"--storage {storage}: on a cluster, give a folder from / on, or a URI such as s3://bucket/folder")
    for key in ("model", "dataset"):
        value = getattr(request.space.activations, key)
        if value != "embedded" and not str(value).startswith("/") and Path(value).exists():
            raise InputError(
                f"activations.{key} is {value}, which is on this machine; put it where every machine of the cluster sees it "
                f"and give that path: --set activations.{key}=/PATH/THERE"
            )
    server = f"http://127.0.0.1:{settings.mlflow_port}" if settings is not None else None
    return JobSpec(
        space_file=request.space_file.name,
        name=request.space.name,
        overrides=list(request.overrides),
        storage=storage,
        tracking_uri=request.tracking_uri or server,
        fresh=request.fresh,
        retry_failed=request.retry_failed,
        accept_numerics=request.accept_numerics,
        node_types=list(target.cluster.node_types) if target.cluster is not None else [],
        requirements=_requirements(),
    )


def check_fits(space: SearchSpace, target: Target) -> None:
    """Checks that the cluster can start a machine that holds a trial, as far as its file tells.

    Raises:
        InputError: naming what a trial asks for and what the machines have.
    """
    if target.cluster is None or not target.cluster.node_types:
        return
    cpus, gpus = space.resources.cpus_per_trial, space.resources.gpus_per_trial
    if any(kind.cpus >= cpus and kind.gpus >= gpus for kind in target.cluster.node_types):
        return
    kinds = ", ".join(f"{kind.name}: {kind.cpus:g} CPUs, {kind.gpus:g} GPUs" for kind in target.cluster.node_types)
    raise InputError(
        f"no machine of {target.cluster.path} can hold a trial of {cpus:g} CPUs and {gpus:g} GPUs ({kinds}); lower "
        "resources.cpus_per_trial or resources.gpus_per_trial with --set, or add a node type"
    )


def start_job(client: "JobSubmissionClient", target: Target, request: Request, spec: JobSpec) -> tuple[str, bool]:
    """Returns (job id, whether it ran already).

    Raises:
        InputError: if a sweep of this name runs there that is not this one, or that shall start afresh.
        SurroundingsError: if the server refuses.
    """
    earlier = sweep_jobs(client, target, spec.name)
    living = [job for _, job in earlier if not job.status.is_terminal()]
    if living:
        return _join(living[-1], request, spec), True
    job = submission_id(spec.name, 1 + max((attempt for attempt, _ in earlier), default=0))
    with tempfile.TemporaryDirectory(prefix="prolu-job-") as folder, server_errors(target):
        work, package = stage(Path(folder), request.space_file, spec)
        environment = {"working_dir": str(work), "py_modules": [str(package)], "env_vars": job_environment()}
        entrypoint = f"exec {_python(target)} -m prolu_tune.launch.job"
        deadline = time.monotonic() + NO_AGENT_S
        while True:
            try:
                client.submit_job(
                    entrypoint=entrypoint, submission_id=job, runtime_env=environment, metadata={DIGEST: request.digest()}
                )
                return job, False
            except RuntimeError as error:
                if "already exists" in str(error):
                    return start_job(client, target, request, spec)  # another machine was faster: join that
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_EVERY_S)


def job_environment() -> dict[str, str]:
    """Returns what the job's processes find in their environment."""
    return {
        "PROLU_EXPERIMENT": experiment_name(),
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        "RAY_USAGE_STATS_ENABLED": "0",
        "DO_NOT_TRACK": "true",
    }


def stage(folder: Path, space_file: Path, spec: JobSpec) -> tuple[Path, Path]:
    """Returns the two folders that travel: the space with `job.json`, and the package, without what is not code of it.

    Raises:
        InputError: if the package has grown beyond reason.
    """
    work, package = folder / "work", folder / "prolu_tune"
    work.mkdir()
    shutil.copyfile(space_file, work / spec.space_file)
    (work / SPEC_FILE).write_text(spec.to_json())
    source = Path(prolu_tune.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "*.tmp"))
    size = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    if size > MAX_PACKAGE_BYTES:
        limit = f"{MAX_PACKAGE_BYTES / 1e6:.0f}"
        raise InputError(f"{source} holds {size / 1e6:.0f} MB, at most {limit} travel; clear it of what is not code")
    return work, package


def stop_on_cluster(name: str, target: Target) -> RemoteOutcome:
    """Returns once a sweep on a cluster has saved and stopped; exit code 1 if it does not run there.

    Raises:
        SurroundingsError: the cluster does not answer.
    """
    with reached(target) as url:
        client = connect(target, url)
        living = [job for _, job in sweep_jobs(client, target, name) if not job.status.is_terminal()]
        if not living:
            others = ", ".join(running_sweeps(client, target)) or "none"
            return RemoteOutcome(1, [], f"no sweep {name} runs on {target.label} (running: {others})")
        job = living[-1].submission_id
        print(f"asked {job} to save its trials and stop", file=sys.stderr)
        with server_errors(target):
            client.stop_job(job)
            while not client.get_job_status(job).is_terminal():
                time.sleep(LOOK_EVERY_S)
    return RemoteOutcome(0, [], f"{name} has stopped; the command that started it goes on with it")


def _join(job: Any, request: Request, spec: JobSpec) -> str:
    if (job.metadata or {}).get(DIGEST) != request.digest():
        raise InputError(
            f"a sweep named {spec.name} runs there with another configuration; give this one another name with --name, or stop "
            f"that one: prolu-tune stop {spec.name}"
        )
    if spec.fresh or spec.retry_failed:
        flag = "--fresh" if spec.fresh else "--retry-failed"
        raise InputError(f"{flag}: {spec.name} is running there; stop it first: prolu-tune stop {spec.name}")
    return job.submission_id


def _python(target: Target) -> str:
    return target.cluster.settings.python if target.cluster is not None else "python"


def _requirements() -> list[str]:
    """Returns what our package needs; empty where it was never installed."""
    try:
        return importlib.metadata.requires("prolu-tune") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise SurroundingsError("prolu-tune is not installed here; install it: make setup") from error
