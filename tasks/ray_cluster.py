"""The runner `ray`: an existing Ray cluster by address, or one on this machine that ends with the run.

Ray itself gives work of a worker that died to another one.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from errors import InputError

from .computing import ATTEMPTS, Result, Work, WorkerDied
from .door import ClusterWork, Examination, common, told_apart
from .site import Place
from .store import Store

CONNECT = 10  # seconds in which the port must open; Ray's own tries come after it
PREPARE = 180  # seconds in which a worker must have imported PyTorch and opened the experiment
OBJECTS = 80 * 2**20  # bytes of Ray's object store, near its least: what crosses are references
GPU = 0.01  # of one, asked for by each task where the run computes on GPUs: without asking Ray hides them


def perform(work: Work) -> Any:
    return work()


class RayCluster:
    """An `Engine` on Ray.

    Args:
        address: `ray://HOST:10001`, or `auto` for the cluster that this machine belongs to; empty: one with `count`
            CPUs is started here.
    """

    def __init__(self, place: Place, count: int, address: str) -> None:
        self.place = told_apart(place, uuid.uuid4().hex)
        self.count, self.address = count, address
        self._open = ExitStack()
        self._probing = ExitStack()
        self._checks: list[Any] = []

    def start(self) -> None:
        if ray.is_initialized():
            raise RuntimeError("this process already uses a Ray cluster; a run needs a process of its own")
        self.wanted = common(self.place)
        with own_signals(), same_imports():
            self._reach() if self.address else self._begin()
        self._open.callback(ray.shutdown)  # before the folder goes
        needs = {"num_gpus": GPU} if self.wanted.device == "cuda" else {}
        task = ray.remote(perform)
        self._task = task.options(num_cpus=1, max_retries=ATTEMPTS - 1, **needs)
        # A cluster of our own sees what we see; and the run's folder is emptied while its workers start.
        probe = self._probing.enter_context(Store(self.place.store).probe()) if self.address else None
        examination = Examination(self.place, self.wanted, probe)
        if not self.address:
            self._checks = [self._task.remote(examination) for _ in range(self.count)]
            return
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if not nodes:
            raise InputError(f"run.address: the Ray cluster at {self.address} has no CPUs; expected at least one")
        for node in nodes:  # num_cpus=0: also where all are busy
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            self._checks.append(task.options(num_cpus=0, scheduling_strategy=there, **needs).remote(examination))
        self.wait()

    def _begin(self) -> None:
        folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="fcl-ray-", ignore_cleanup_errors=True))
        ray.init(
            address="local",
            num_cpus=self.count,
            include_dashboard=False,
            object_store_memory=OBJECTS,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
        )

    def _reach(self) -> None:
        try:
            if self.address != "auto":
                about = urlsplit(self.address)
                socket.create_connection((about.hostname, about.port), timeout=CONNECT).close()
            ray.init(address=self.address, log_to_driver=False, logging_level=logging.CRITICAL)
        except (OSError, ValueError, RuntimeError, RayError) as error:  # Ray's versions that differ: a RuntimeError
            raise InputError(
                f"run.address: expected a Ray cluster at {self.address}, but there is none to be had "
                f"({type(error).__name__}: {error})"
            ) from None

    def wait(self) -> None:
        """See `Engine.wait`.

        Raises:
            InputError: a worker cannot compute for this run.
        """
        where = f"run.address: {self.address}" if self.address else "run.runner: ray"
        try:
            found = set(ray.get(self._checks, timeout=PREPARE)) - {""}
        except ray.exceptions.GetTimeoutError:
            raise InputError(f"{where}: not every worker has opened the experiment within {PREPARE} s") from None
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            raise InputError(
                f"{where}: the cluster cannot load the project's code, which every machine needs "
                f"({type(error).__name__}: {error})"
            ) from None
        finally:
            self._probing.close()
        if found:
            raise InputError(f"{where}: a worker cannot compute for this run: {min(found)}")
        self._checks = []

    def call(self, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
        name = f"the Ray cluster{f' at {self.address}' if self.address else ''}"
        work = ClusterWork(function, self.place, arguments, self.wanted)
        try:
            return ray.get(self._task.remote(work))
        except RayTaskError as error:  # what the work itself raised
            raise error.cause from error
        except (RayError, ConnectionError) as error:
            kind = type(error).__name__
            raise WorkerDied(
                f"workers of {name} died {ATTEMPTS} times, or it is gone ({kind}); was one killed, or is memory short?"
            ) from None

    def stop(self) -> None:
        self._probing.close()
        self._open.close()


@contextmanager
def own_signals():
    """Ray replaces the handler of SIGTERM; the run has one of its own (interruption.py)."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


@contextmanager
def same_imports():
    """What is started here imports from where this process does, as the workers of the other runners do."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
