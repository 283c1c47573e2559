"""The tracking server on a cluster's head, reached by the verbs that read results through a tunnel that ends with them."""

import atexit
from pathlib import Path

from prolu_tune.errors import InputError
from prolu_tune.launch.find import Target, named_cluster
from prolu_tune.launch.tunnel import Tunnel


def tracking_through(cluster: Path, tracking_uri: str | None) -> str:
    """Returns the URI of the tracking server of a cluster; the tunnel to it ends with this process.

    Raises:
        InputError: if another tracking store is named as well, or the cluster file is wrong.
        SurroundingsError: if the cluster does not answer.
    """
    if tracking_uri is not None:
        raise InputError(
            f"--cluster {cluster} reads the tracking server of the cluster, --tracking-uri {tracking_uri} another; give one "
            "(PROLU_CLUSTER, PROLU_TRACKING_URI and MLFLOW_TRACKING_URI count as given)"
        )
    target = named_cluster(cluster)
    return tracking_tunnel(target)


def tracking_tunnel(target: Target) -> str:
    """Returns the URI of a tunnel to the head's tracking server."""
    assert target.cluster is not None and target.host is not None
    port = target.cluster.settings.mlflow_port
    tunnel = Tunnel(target.cluster, target.host, [port])
    atexit.register(tunnel.close)
    return tunnel.url(port)
