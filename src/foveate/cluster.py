"""Ray, for when one machine is not enough: this machine as a cluster of its own, or a cluster that runs already."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .errors import FoveateError

ADDRESS = "RAY_ADDRESS"  # the environment's, which Ray itself sets for submitted jobs
# Ray reports its use to its makers unless it is told not to; who wants that sets the variable.
# The backend's own log would tell of everything that Ray copes with, such as workers that are started again.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}


class ClusterError(FoveateError, RuntimeError):
    """Ray is missing, no cluster answers, or it is too small for what was asked."""


@dataclass(frozen=True)
class Workers:
    """How many workers there are, and what each of them gets.

    Attributes:
        number: of workers, each with its own model.
        cpus: cores of each, as Ray reserves them.
        gpus: of each.
    """

    number: int
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Cluster:
    """The living machines of a cluster, each with its cores and GPUs.

    Attributes:
        machines: cores and GPUs of each.
    """

    machines: Sequence[tuple[int, int]]

    @property
    def gpus(self) -> int:
        """GPUs of all machines."""
        return sum(gpus for _, gpus in self.machines)

    def divide(self, number: int | None = None) -> Workers:
        """Divide the cluster among workers; by default there is one for each GPU, or without any one a machine.

        Raises:
            ClusterError: when there are fewer cores or GPUs than workers.
        """
        gpus = 1 if self.gpus else 0
        wanted = number or self.gpus or sum(cpus > 0 for cpus, _ in self.machines)
        for cpus in range(max((cpus for cpus, _ in self.machines), default=0), 0, -1):
            room = sum(min(own // cpus, own_gpus) if gpus else own // cpus for own, own_gpus in self.machines)
            if room >= wanted > 0:
                return Workers(wanted, cpus, gpus)
        what = f"{self.gpus} GPUs" if gpus else f"{sum(cpus for cpus, _ in self.machines)} cores"
        raise ClusterError(f"the cluster has {what}, which do not do for {wanted} workers; ask for fewer by --workers.")


def require_ray() -> None:
    """Raise ClusterError where Ray is not installed."""
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise ClusterError(
            f"Ray cannot be imported ({error}); install it in the clone: pip install -e '.[ray]'."
        ) from None


@contextmanager
def connect(address: str | None = None) -> Iterator[Cluster]:
    """Connect to a cluster, or make one of this machine, until the block ends; one that is connected already stays.

    Args:
        address: of a running cluster, as ``host:port`` or ``auto``; by default the environment's ``RAY_ADDRESS``, and
            without that this machine.

    Raises:
        ClusterError: where Ray is not installed, and when no cluster answers.
    """
    require_ray()
    import ray

    if ray.is_initialized():
        yield _look()
        return
    address = address or os.environ.get(ADDRESS)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        options |= {"include_dashboard": False, "num_cpus": _cores()}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        where = f"no Ray cluster answers at {address}" if address else "Ray does not start on this machine"
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        fix = "start one by `ray start --head`, or set RAY_AUTH_MODE=token where it asks for tokens" if address else ""
        raise ClusterError(f"{where} ({why}); {fix or 'see the logs in /tmp/ray'}.") from None
    try:
        yield _look()
    finally:
        ray.shutdown()


def enter_folder(folder: str) -> None:
    """Make a worker's relative paths mean what they mean to whoever started it, where the folder is there."""
    if os.path.isdir(folder):
        os.chdir(folder)


def _look() -> Cluster:
    import ray

    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Cluster([(int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in found])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
