"""The runner `dask`: an existing Dask cluster by its scheduler's address, or one here that ends with the run.

Dask itself gives work of a worker that died to another one.
"""

from __future__ import annotations

import logging
import socket
import tempfile
import uuid
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import dask
import distributed
from distributed.scheduler import KilledWorker
from distributed.versions import VersionMismatchWarning

from errors import InputError

from .computing import ATTEMPTS, Result, WorkerDied
from .door import ClusterWork, Examination, common, told_apart
from .site import Place
from .store import Store

CONNECT = 15  # seconds in which a scheduler must answer
PREPARE = 180  # seconds in which a worker must have imported PyTorch and opened the experiment
PATIENCE = 30  # seconds between two looks whether the cluster still has workers


def greeted(address: str) -> None:
    """Waits for what a scheduler says first: Dask's client would wait for ever for one that says nothing.

    Raises:
        OSError: nothing was said within `CONNECT` seconds.
    """
    about = urlsplit(address)
    with socket.create_connection((about.hostname, about.port), timeout=CONNECT) as connection:
        if about.scheme == "tcp" and not connection.recv(1):  # with TLS the client speaks first
            raise ConnectionResetError("the connection was closed")


class DaskCluster:
    """An `Engine` on Dask.

    Args:
        address: of a scheduler, `tcp://HOST:8786`; empty: `count` workers of one thread are started here.
    """

    def __init__(self, place: Place, count: int, address: str) -> None:
        self.place = told_apart(place, uuid.uuid4().hex)
        self.count, self.address = count, address
        self._open = ExitStack()
        self._probing = ExitStack()
        self._checks: list[distributed.Future] = []

    def start(self) -> None:
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what a person can act on is raised
        self.wanted = common(self.place)
        self._client = self._open.enter_context(self._reach() if self.address else self._begin())
        # A cluster of our own sees what we see; and the run's folder is emptied while its workers start.
        probe = self._probing.enter_context(Store(self.place.store).probe()) if self.address else None
        workers = list(self._client.nthreads())
        if not workers:
            raise InputError(f"run.address: the Dask cluster at {self.address} has no workers; expected at least one")
        self._checks = [
            self._submit(Examination(self.place, self.wanted, probe), workers=[each], allow_other_workers=False)
            for each in workers
        ]
        if self.address:
            self.wait()

    def _begin(self) -> distributed.Client:
        scratch = self._open.enter_context(tempfile.TemporaryDirectory(prefix="fcl-dask-", ignore_cleanup_errors=True))
        with dask.config.set({"distributed.scheduler.allowed-failures": ATTEMPTS - 1}):
            cluster = distributed.LocalCluster(
                n_workers=self.count,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address=None,
                memory_limit=0,  # the machine's own limit holds; Dask's would stop workers at a share of it
                local_directory=scratch,
                silence_logs=logging.CRITICAL,
            )
        self._open.enter_context(cluster)
        client = distributed.Client(cluster, set_as_default=False)
        client.wait_for_workers(self.count, timeout=PREPARE)
        return client

    def _reach(self) -> distributed.Client:
        try:
            greeted(self.address)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", VersionMismatchWarning)  # ours are checked, see door.py
                return distributed.Client(self.address, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise InputError(
                f"run.address: expected a Dask scheduler, but none answers at {self.address} within {CONNECT} s "
                f"({type(error).__name__})"
            ) from None

    def wait(self) -> None:
        """See `Engine.wait`.

        Raises:
            InputError: a worker cannot compute for this run.
        """
        where = f"run.address: {self.address}" if self.address else "run.runner: dask"
        try:
            found = {future.result(timeout=PREPARE) for future in self._checks} - {""}
        except distributed.TimeoutError:
            raise InputError(f"{where}: not every worker has opened the experiment within {PREPARE} s") from None
        except (ImportError, AttributeError, RuntimeError) as error:
            if isinstance(error, ImportError | AttributeError) or "deserializ" in str(error):
                raise InputError(
                    f"{where}: the cluster cannot load the project's code, which its scheduler and every worker need "
                    f"({type(error).__name__}: {error})"
                ) from None
            raise
        finally:
            self._probing.close()
        if found:
            raise InputError(f"{where}: a worker cannot compute for this run: {min(found)}")
        self._checks = []

    def _submit(self, work: Any, **where: Any) -> distributed.Future:
        return self._client.submit(work, key=f"fcl-{uuid.uuid4().hex}", pure=False, **where)

    def call(self, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
        name = f"the Dask cluster{f' at {self.address}' if self.address else ''}"
        future = self._submit(ClusterWork(function, self.place, arguments, self.wanted))
        deserted = False
        try:
            while True:
                try:
                    return future.result(timeout=PATIENCE)
                except distributed.TimeoutError:
                    if future.done():  # just now, or the error is the work's own
                        return future.result()
                    before, deserted = deserted, not self._client.nthreads()
                    if before and deserted:
                        raise WorkerDied(f"{name} has had no workers for {PATIENCE} s") from None
        except KilledWorker:
            raise WorkerDied(f"workers of {name} died again and again; were they killed, or is memory short?") from None
        except (distributed.CancelledError, OSError) as error:
            if isinstance(error, OSError) and self._client.status == "running":
                raise  # the work's own
            raise WorkerDied(f"{name} is gone ({type(error).__name__})") from None

    def stop(self) -> None:
        self._probing.close()
        self._open.close()
