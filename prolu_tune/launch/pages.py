"""The pages of a cluster on this machine: MLflow's and Ray's, through one tunnel, until Ctrl-C."""

import sys
import time
import webbrowser
from pathlib import Path

from prolu_tune.errors import SurroundingsError
from prolu_tune.launch.find import named_cluster
from prolu_tune.launch.tunnel import Tunnel

LOOK_EVERY_S = 1.0


def open_pages(cluster: Path, *, browser: bool) -> int:
    """Returns the exit code once the pages were left with Ctrl-C.

    Raises:
        InputError: if the cluster file is wrong or no cluster of it is up.
        SurroundingsError: if the cluster does not answer, or the tunnel broke.
    """
    target = named_cluster(cluster)
    assert target.cluster is not None and target.host is not None
    settings = target.cluster.settings
    with Tunnel(target.cluster, target.host, [settings.mlflow_port, settings.dashboard_port]) as tunnel:
        mlflow = tunnel.url(settings.mlflow_port)
        lines = [f"MLflow's UI: {mlflow}", f"Ray's dashboard: {tunnel.url(settings.dashboard_port)}"]
        if target.cluster.token_file is not None:
            lines.append(f"  asks for the token in {target.cluster.token_file}")
        print("\n".join([*lines, "Ctrl-C ends both"]), file=sys.stderr)
        if browser:
            webbrowser.open(mlflow)
        try:
            while tunnel.alive:
                time.sleep(LOOK_EVERY_S)
        except KeyboardInterrupt:
            return 0
    raise SurroundingsError(f"the tunnel to {target.label} broke; give the same command again")
