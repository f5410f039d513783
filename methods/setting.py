"""What an experiment fixes for its method: networks, data that are not the clients', sizes, the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from models import Architecture
from models.foundation import Foundation
from randomness import generator

from .devices import Device
from .training import LocalData, TrainParameters

CENTRE = -1  # the one participant of a centralised method: it holds the data of all clients


@dataclass(frozen=True)
class Setting:
    """What an experiment fixes for its method."""

    architectures: tuple[Architecture, ...]  # client i has the i-th, round-robin; the server's own is the first
    train: TrainParameters
    seed: int
    clients: int
    experiences: int
    device: str = "cpu"
    public: Callable[[], LocalData] | None = None  # the samples that no client holds, read when they are asked for
    outside: Callable[[str], LocalData] | None = None  # all training samples of another source, scaled to the stream's
    picture: Callable[[str], np.ndarray] | None = None  # one picture by its name, (3, height, width) uint8
    oracle: Callable[[int], LocalData] | None = None  # all clients' data until an experience; only where it is allowed
    foundation: Callable[[], Foundation] | None = None  # the frozen foundation model; shared: never change it
    task_aware: bool = False  # the experience of a sample is known when it is predicted (task-incremental)
    devices: tuple[Device, ...] = ()  # the clients' simulated devices, where the method has a cost model
    # Where clients have different tasks: which architecture each has; all are parts of the first, the server's.
    parts: tuple[int, ...] = ()

    @property
    def architecture(self) -> Architecture:
        return self.architectures[0]

    def place(self, client: int) -> int:
        """Which of the architectures `client` has; the server and the centre have the first."""
        if client < 0:
            return 0
        return self.parts[client] if self.parts else client % len(self.architectures)

    def initial_model(self, place: int = 0) -> dict[str, Tensor]:
        """The common starting point of all methods of one seed, and of all clients with this architecture."""
        if self.parts:
            return self.part(self.architecture.initial(generator(self.seed, "model")), place)
        names = ("model", place) if place else ("model",)
        return self.architectures[place].initial(generator(self.seed, *names))

    def part(self, tensors: Mapping[str, Tensor], place: int) -> dict[str, Tensor]:
        """Of the server's network those tensors that the one at `place` has; all where clients have the same tasks."""
        return {name: tensors[name] for name in self.architectures[place].names} if self.parts else dict(tensors)

    def state(self, model: nn.Module, client: int = CENTRE) -> dict[str, Tensor]:
        """The tensors of a network that `load` gave."""
        return self.architectures[self.place(client)].state(model)

    def load(self, tensors: Mapping[str, Tensor], client: int = CENTRE) -> nn.Module:
        """`client`'s network with copies of `tensors`, on the experiment's device."""
        return self.architectures[self.place(client)].load(tensors, self.device)
