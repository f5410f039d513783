"""Where tasks compute: in their own thread, or in long-lived worker processes.

Prefect schedules tasks on threads either way. With `processes` the thread hands the work to a process that has imported
torch and opened the stream once: measured, a Prefect task submitted to a fresh process costs 85 ms, one to a thread
that hands over 3 ms.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, TypeVar

import torch

from .site import Place, Site, prepare_process, site

Result = TypeVar("Result")
ATTEMPTS = 3  # of work whose worker process dies


class WorkerDied(RuntimeError):
    """A worker process ended before its task did (killed, or out of memory)."""


def _end_with_parent() -> None:
    """A worker whose run was killed ends too, in the middle of what it does."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _open(place: Place) -> None:
    prepare_process()
    warm_up(site(place))


def warm_up(opened: Site) -> None:
    """One training step on a throw-away model: torch imports and compiles for a second when it is first used."""
    setting = opened.method.setting
    model = setting.load(setting.architecture.initial(torch.Generator()))
    kind = torch.float32 if opened.stream.modality == "image" else torch.uint8
    inputs = torch.zeros(2, *setting.architecture.shape, dtype=kind, device=setting.device)
    said = model.features(inputs) if opened.stream.modality == "record" else model(inputs)
    said.square().mean().backward()
    setting.train.optimizer_for(list(model.parameters())).step()


def _compute(function: Callable[..., Result], place: Place, arguments: tuple[Any, ...]) -> Result:
    return function(site(place), *arguments)


class Workers:
    """Runs `function(site, *arguments)` for one experiment; `call` blocks its thread until the result is there."""

    def __init__(self, place: Place, runner: str, count: int) -> None:
        self.place, self.runner, self.count = place, runner, count
        self._pool: ProcessPoolExecutor | None = None
        self._opening: list[Future] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Workers:
        if self.runner == "processes":
            self._start()
        else:
            prepare_process()
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(self.count, spawn, initializer=_end_with_parent)
        self._opening = [self._pool.submit(_open, self.place) for _ in range(self.count)]

    def wait_until_ready(self) -> None:
        """Blocks until everything is imported, opened and warm, here or in the worker processes."""
        if self._pool is None:
            warm_up(site(self.place))
        for future in self._opening:
            future.result()

    def call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function` must be importable by name and its arguments small: references, not tensors.

        Work that lost its process is done again in another one; since it is a function of its arguments, nothing else
        changes.

        Raises:
            WorkerDied: the processes that computed it ended, one after the other.
        """
        for _ in range(ATTEMPTS):
            with suppress(WorkerDied):
                return self.once(function, *arguments)
        raise WorkerDied(f"worker processes died {ATTEMPTS} times; were they killed, or is memory short?")

    def once(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """`call` without a second try.

        Raises:
            WorkerDied: a worker process ended, not necessarily the one that computed this; others take their place.
        """
        pool = self._pool
        if pool is None:
            return function(site(self.place), *arguments)
        try:
            return pool.submit(_compute, function, self.place, arguments).result()
        except BrokenProcessPool:
            with self._lock:
                if self._pool is pool:  # the first of the threads that lost their process replaces the pool
                    self._start()
            raise WorkerDied("a worker process died") from None
