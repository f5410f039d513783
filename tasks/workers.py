"""Where tasks compute: in their own thread, in worker processes, or on a Dask or Ray cluster (`run.runner`).

Prefect schedules tasks on threads whatever the runner is. The thread of a task hands its work over and waits, so that
retries, names and states of tasks are the same everywhere, and only this layer knows of processes and clusters.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from errors import InputError

from .computing import ATTEMPTS, Engine, Result, Threads, WorkerDied
from .site import Place
from .worker_processes import WorkerProcesses

__all__ = ["ATTEMPTS", "WorkerDied", "Workers"]

PACKAGES = {"dask": "distributed", "ray": "ray"}  # which a runner needs; both come with the extra `cluster`


class Workers:
    """Runs `function(site, *arguments)` for one experiment; `call` blocks its thread until the result is there.

    Args:
        place: the experiment, and where it lies.
        runner: a value of `run.runner`.
        count: tasks that compute at the same time.
        address: of the Dask or Ray cluster to use; empty: one is started here and ends with the run.
    Raises:
        InputError: the runner's package is not installed.
    """

    def __init__(self, place: Place, runner: str, count: int, address: str = "") -> None:
        self.count = count
        self._engine = engine(place, runner, count, address)

    def __enter__(self) -> Workers:
        try:
            self._engine.start()
        except BaseException:
            self._engine.stop()  # whatever of a cluster has been started
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.stop()

    def wait_until_ready(self) -> None:
        """Blocks until everything is imported, opened and warm, here or in the workers."""
        self._engine.wait()

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function` must be importable by name and its arguments small: references, not tensors.

        Work that lost its worker is done again by another one; since it is a function of its arguments, nothing else
        changes.

        Raises:
            WorkerDied: the workers that computed it ended, one after the other.
        """
        return self._engine.call(function, arguments)

    def once(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """`call` without a second try, of runner `processes` alone.

        Raises:
            WorkerDied: a worker process ended, not necessarily the one that computed this; others take their place.
        """
        return self._engine.once(function, arguments)


def engine(place: Place, runner: str, count: int, address: str) -> Engine:
    """The runner's engine, not started. Only what is chosen is imported: Dask and Ray take their time."""
    if runner in PACKAGES and importlib.util.find_spec(PACKAGES[runner]) is None:
        raise InputError(
            f"run.runner: '{runner}' needs the package {PACKAGES[runner]}, which is not installed; install the extra "
            "'cluster' (pip install 'fcl[cluster]'), or choose threads or processes"
        )
    if runner == "dask":
        from .dask_cluster import DaskCluster

        return DaskCluster(place, count, address)
    if runner == "ray":
        from .ray_cluster import RayCluster

        return RayCluster(place, count, address)
    return WorkerProcesses(place, count) if runner == "processes" else Threads(place)
