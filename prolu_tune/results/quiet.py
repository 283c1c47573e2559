"""MLflow without telemetry, notes and progress bars, set in one place before its first import."""

import logging
import os

QUIET_ENVIRONMENT: dict[str, str] = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow 3.17 takes only the word `true` here; `1` would leave its telemetry on.
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow imports GitPython, which complains on standard error where there is no git.
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Nothing is phoned home and nothing is printed: MLflow's client prints a link after each run, its stores log at INFO."""

QUIET_LOGGERS: tuple[str, ...] = ("mlflow", "alembic", "sqlalchemy.engine", "urllib3.connectionpool")


def quiet_mlflow() -> None:
    """Returns nothing; MLflow imported in this process afterwards, or in a child of it, neither talks nor phones home.

    Call it before the first `import mlflow`; calling it again is harmless. What its loggers have to say is dropped,
    errors with their tracebacks included (a full disk is one): what matters reaches us as an exception.
    """
    os.environ.update(QUIET_ENVIRONMENT)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
