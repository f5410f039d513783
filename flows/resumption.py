"""Flow runs whose process was killed: they wait for a worker again, which goes on from the last finished round.

While a process works on a flow run it holds a lock in the project's folder, which the system frees however the process
ends. So a mark with a free lock is a run that was killed, by Ctrl-C of `fcl serve`, kill -9 or a power cut.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry

from .server import end_with_parent
from .services import SERVED

LEAVING = 3.0  # seconds in which a process that was just killed is gone
WHY = "interrupted; goes on from its last finished round"


@contextmanager
def marked(root: Path, flow_run: str) -> Iterator[None]:
    """This process works on `flow_run`. The mark goes with the block unless the process is killed or interrupted."""
    if SERVED in os.environ:  # Prefect lets the runs of a killed worker go on, which nothing waits for here
        end_with_parent(signal.SIGKILL)
    mark = root / "runs" / "deployed" / f"{flow_run}.run"
    mark.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(mark.with_suffix(".lock")):
        mark.touch()
        try:
            yield
        except Exception:  # a fault of its own, which a person has to look at
            mark.unlink()
            raise
        mark.unlink()
    mark.with_suffix(".lock").unlink(missing_ok=True)


def take_up(root: Path, pool: str, worker: str) -> int:
    """Lets those runs wait for a worker again whose process here is gone; how many they are.

    Args:
        root: the project's folder, in which they ran.
        pool: their work pool.
        worker: the name of this machine's worker, which is not running. Where it is the pool's only one, also runs
            count that a worker had taken and not begun.
    """
    killed = (StateType.RUNNING, StateType.PENDING, StateType.CRASHED)
    with get_client(sync_client=True) as client:
        runs = {}
        for flow_run in _killed(root):
            with suppress(ObjectNotFound):  # the mark is of another server's run, or a user has deleted it
                run = client.read_flow_run(flow_run)
                if run.state_type in killed:
                    runs[run.id] = run
        others = [each.name for each in client.read_workers_for_work_pool(pool) if each.name != worker]
        if not others:
            pending = FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.PENDING]}}})
            ours = WorkPoolFilter.model_validate({"name": {"any_": [pool]}})
            taken = client.read_flow_runs(flow_run_filter=pending, work_pool_filter=ours)
            runs |= {run.id: run for run in taken}
        for run in runs:
            client.set_flow_run_state(run, AwaitingRetry(message=WHY), force=True)
    return len(runs)


def _killed(root: Path) -> Iterator[str]:
    """The flow runs that no process works on any more; their marks go."""
    for mark in sorted((root / "runs" / "deployed").glob("*.run")):
        lock = mark.with_suffix(".lock")
        with suppress(Timeout), FileLock(lock, timeout=LEAVING):
            mark.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
            yield mark.stem
