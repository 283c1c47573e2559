"""Ray's job server on the head of a cluster: what can be said to it, and its refusals as messages a person can act on."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prolu_tune.errors import SurroundingsError
from prolu_tune.launch.find import Target

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PREFIX = "prolu-"
QUIET_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
"""Ray's client would go there, whatever address it is given."""


@contextmanager
def server_errors(target: Target) -> Iterator[None]:
    """Turns what the client raises into one message.

    Raises:
        SurroundingsError: the server does not answer, or does not accept the token.
    """
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise SurroundingsError(_token_refused(target, missing="required" in str(error).partition(":")[0])) from error
    except (requests.RequestException, ConnectionError) as error:
        raise SurroundingsError(
            f"the job server of {target.label} does not answer ({_first_line(error)}); Ray may still be starting there, or has "
            f"ended: see `{_look(target)}`"
        ) from error
    except RuntimeError as error:
        raise SurroundingsError(f"the job server of {target.label} refuses: {_first_line(error)}") from error


def connect(target: Target, url: str) -> "JobSubmissionClient":
    """Returns a client of the job server at `url`.

    Raises:
        InputError: if the token's file cannot be read.
        SurroundingsError: if the server does not answer, refuses the token, or runs another Ray.
    """
    token = target.cluster.token() if target.cluster is not None else None
    for name in ADDRESSES:
        os.environ.pop(name, None)
    import ray
    from ray.job_submission import JobSubmissionClient

    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    headers: dict[str, Any] = {"Authorization": f"Bearer {token}"} if token else {}
    with server_errors(target):
        client = JobSubmissionClient(url, headers=headers)
    theirs = getattr(client, "_server_ray_version", None)
    if theirs != ray.__version__:
        raise SurroundingsError(
            f"{target.label} runs Ray {theirs}, this machine {ray.__version__}; they must be the same: install "
            f"requirements.lock here (make setup), and there with `{_up(target)}`"
        )
    return client


def sweep_jobs(client: "JobSubmissionClient", target: Target, name: str) -> list[tuple[int, Any]]:
    """Returns (attempt, job) of every job of a sweep, oldest first."""
    prefix, found = f"{PREFIX}{name}.", []
    with server_errors(target):
        for job in client.list_jobs():
            attempt = (job.submission_id or "").removeprefix(prefix)
            if job.submission_id and job.submission_id.startswith(prefix) and attempt.isdigit():
                found.append((int(attempt), job))
    return sorted(found, key=lambda entry: entry[0])


def running_sweeps(client: "JobSubmissionClient", target: Target) -> list[str]:
    """Returns the names of the sweeps that run on the cluster."""
    with server_errors(target):
        jobs = [job.submission_id or "" for job in client.list_jobs() if not job.status.is_terminal()]
    return [job.removeprefix(PREFIX).rpartition(".")[0] for job in jobs if job.startswith(PREFIX)]


def submission_id(name: str, attempt: int) -> str:
    """Returns the id of a job: the same for the same sweep and attempt, whoever starts it."""
    return f"{PREFIX}{name}.{attempt}"


def _token_refused(target: Target, *, missing: bool) -> str:
    if target.cluster is None:
        return (
            f"the job server of {target.label} asks for a token; put it into ~/.ray/auth_token (mode 0600) and set "
            "RAY_AUTH_MODE=token, or give the cluster's file with --cluster"
        )
    if missing:
        return (
            f"the job server of {target.label} asks for a token, but {target.cluster.path} names none; add to its file_mounts: "
            "~/.ray/auth_token: ~/.ray/auth_token"
        )
    return (
        f"the job server of {target.label} does not accept the token in {target.cluster.token_file}; the cluster was brought "
        f"up with another one: copy that here, or give it this one with `{_up(target)}`"
    )


def _look(target: Target) -> str:
    return f"ray exec {target.cluster.path} 'ray status'" if target.cluster is not None else "ray status"


def _up(target: Target) -> str:
    return f"ray up {target.cluster.path}" if target.cluster is not None else "ray up FILE"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
