"""What the runners have in common: the work that crosses to a worker, and what becomes of it there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

from .site import Place, Site, prepare_process, site

Result = TypeVar("Result")
ATTEMPTS = 3  # of work whose worker dies


class WorkerDied(RuntimeError):
    """The workers that computed a task ended before it did (killed, or out of memory), or their cluster is gone."""


class Engine(Protocol):
    """Where tasks compute; one implementation for each value of `run.runner`."""

    def start(self) -> None:
        """Starts or reaches the workers; those of a cluster that exists have passed their check when it returns.

        Raises:
            InputError: there is no such cluster, or one of its workers cannot compute for this run.
        """

    def wait(self) -> None:
        """Blocks until the workers have imported and opened everything."""

    def call(self, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
        """`function(site, *arguments)`, computed by a worker; blocks. Lost work is done again, `ATTEMPTS` times in all.

        Raises:
            WorkerDied: no worker has lived to the end of it.
        """

    def stop(self) -> None:
        """Ends what `start` has started."""


class Work:
    """A function of references that a worker computes.

    Callable and opaque: Dask would look into tuples and dataclasses in its arguments for results of other tasks.
    """

    def __init__(self, function: Callable[..., Result], place: Place, arguments: tuple[Any, ...]) -> None:
        self.function, self.place, self.arguments = function, place, arguments

    def __call__(self) -> Result:
        prepare_process()  # each time: on a cluster the thread may have computed for others in between
        return self.function(site(self.place), *self.arguments)


class Threads:
    """An `Engine` that computes in the calling thread."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def start(self) -> None:
        prepare_process()

    def wait(self) -> None:
        warm_up(site(self.place))

    def call(self, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Result:
        return function(site(self.place), *arguments)

    def stop(self) -> None:
        pass


def open_and_warm_up(place: Place) -> None:
    """In a worker process: opens the experiment and does what torch needs before its first step."""
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
