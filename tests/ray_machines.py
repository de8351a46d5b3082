"""A small Ray cluster in this process: two machines of one core each, as far as Ray is concerned."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def two_machines() -> Iterator[str]:
    """The address of a cluster that this process is connected to, until the block ends."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield cluster.address
    finally:
        ray.shutdown()
        cluster.shutdown()


def kill_a_worker(name: str) -> int:
    """End the process of one living actor whose class is called so, without warning; returns its id."""
    from ray._private.state import actors

    ids = [one["Pid"] for one in actors().values() if name in one["ActorClassName"] and one["State"] == "ALIVE"]
    os.kill(ids[0], signal.SIGKILL)
    return int(ids[0])
