"""The runner `processes`: long-lived worker processes of the run's own, which end with it.

Measured: a Prefect task submitted to a fresh process costs 85 ms, one to a thread that hands its work over 3.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any

from .computing import ATTEMPTS, Result, Work, WorkerDied, open_and_warm_up
from .site import Place


def _end_with_parent() -> None:
    """A worker whose run was killed ends too, in the middle of what it does."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


class WorkerProcesses:
    """An `Engine` of `count` spawned processes on this machine."""

    def __init__(self, place: Place, count: int) -> None:
        self.place, self.count = place, count
        self._pool: ProcessPoolExecutor | None = None
        self._opening: list[Future] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(self.count, spawn, initializer=_end_with_parent)
        self._opening = [self._pool.submit(open_and_warm_up, self.place) for _ in range(self.count)]

    def wait(self) -> None:
        for future in self._opening:
            future.result()

    def call(self, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
        for _ in range(ATTEMPTS):
            with suppress(WorkerDied):
                return self.once(function, arguments)
        raise WorkerDied(f"worker processes died {ATTEMPTS} times; were they killed, or is memory short?")

    def once(self, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
        """See `Workers.once`."""
        pool = self._pool
        try:
            return pool.submit(Work(function, self.place, arguments)).result()
        except BrokenProcessPool:
            with self._lock:
                if self._pool is pool:  # the first of the threads that lost their process replaces the pool
                    self.start()
            raise WorkerDied("a worker process died") from None

    def stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
