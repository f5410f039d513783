"""`fcl serve`: Prefect server, MLflow, work pool, deployments and a worker on one machine, until Ctrl-C."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from errors import InputError
from tasks.files import write_json

from .services import MLFLOW_UI, SERVED, Services, address_file, user_interfaces
from .ui import deliver

POOL = "fcl"


def serve(root: Path, limit: int) -> None:
    """Brings all of it up, prints the addresses, and blocks until Ctrl-C; what runs then waits for the next worker.

    Args:
        root: the project's folder, with prefect.yaml.
        limit: runs of the pool that go on at the same time, at least 1.
    Raises:
        InputError: there is no prefect.yaml, `limit` is 0, or another `fcl serve` is running in the folder.
        NotStarted: a server did not start.
        RuntimeError: the deployments are refused, or a service ended by itself.
    """
    if not (root / "prefect.yaml").is_file():
        raise InputError(f"no prefect.yaml in {root}: expected the deployments that fcl serve registers")
    if limit < 1:
        raise InputError(f"--limit must be at least 1 (got {limit})")
    deliver(root)
    with alone(root), suppress(KeyboardInterrupt), user_interfaces(root) as (services, prefect, mlflow):
        os.environ["PREFECT_API_URL"] = f"{prefect}/api"
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: f"{prefect}/api"}):
            make_pool(limit)
            deploy(root, services)
            work(root, limit, services, prefect, mlflow)


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Holds the project's lock: a second one here would take up the first one's runs.

    Raises:
        InputError: another `fcl serve` is running in `root`.
    """
    lock = FileLock(root / "runs" / "locks" / "serve.lock")
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"fcl serve is already running in {root}; submit to it, or end it first") from None
    try:
        yield
    finally:
        lock.release()


def work(root: Path, limit: int, services: Services, prefect: str, mlflow: str) -> None:
    """Starts the worker and blocks; afterwards its runs wait for the next one."""
    from .resumption import take_up

    name = f"fcl serve on {socket.gethostname()}"
    if again := take_up(root, POOL, name):
        print(f"resuming    {again} interrupted run{'s' * (again > 1)}", flush=True)
    log = root / "runs" / "worker.log"
    log.parent.mkdir(exist_ok=True)
    command = ["prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    services.start("worker", [*command, "--name", name], log, **{MLFLOW_UI: mlflow, SERVED: "1"})
    try:
        write_json(address_file(root), {"prefect": f"{prefect}/api"})
        print(f"worker      runs at the same time: {limit}; its log: runs/{log.name}", flush=True)
        print("fcl submit METHOD --stream STREAM queues a run; Ctrl-C stops everything", flush=True)
        raise RuntimeError(f"the {services.watch()} stopped by itself; the worker's log is runs/{log.name}")
    finally:
        address_file(root).unlink(missing_ok=True)
        services.stop("worker")
        take_up(root, POOL, name)


def make_pool(limit: int) -> None:
    """Makes the process work pool where there is none; at most `limit` of its runs go on at the same time.

    The pool's limit and not the worker's: a Prefect worker with a limit dies of a run that is retried right after it
    crashed ("this borrower is already holding one of this CapacityLimiter's tokens").
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(POOL)
            client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=limit))
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", concurrency_limit=limit))


def deploy(root: Path, services: Services) -> None:
    """Registers the deployments of prefect.yaml."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=root, env=services.environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"prefect deploy --all: {(done.stderr or done.stdout).strip()[-500:]}")
