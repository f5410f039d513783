"""Which tasks a client has: its pattern; and in a multi-task stream, when they come."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multitask import Layout
from streams.manifest import TASKS
from streams.parameters import StreamParameters
from streams.plan import NEVER


@dataclass(frozen=True)
class Patterns:
    """Tasks of labels and of clients.

    Attributes:
        names: the tasks.
        of_label: (classes,) int64, the task (a place in `names`) whose label it is.
        held: (clients, tasks) bool, whether a client has the task at any time.
    """

    names: tuple[str, ...]
    of_label: np.ndarray
    held: np.ndarray

    @classmethod
    def of(cls, parameters: StreamParameters, layout: Layout | None, classes: int) -> Patterns:
        """Those of the parameters; in a stream without a layout all clients have the one task there is."""
        if layout is None:
            return cls.ordinary(parameters.clients, classes)
        of_label = np.zeros(classes, np.int64)
        for place, task in enumerate(layout.tasks):
            of_label[task.first : task.first + task.classes] = place
        held = [[task.name in pattern(parameters, client) for task in layout.tasks] for client in _clients(parameters)]
        return cls(tuple(task.name for task in layout.tasks), of_label, np.array(held))

    @classmethod
    def ordinary(cls, clients: int, classes: int) -> Patterns:
        """One task, which all clients have."""
        return cls(TASKS, np.zeros(classes, np.int64), np.ones((clients, 1), bool))


def pattern(parameters: StreamParameters, client: int) -> tuple[str, ...]:
    """The tasks of a client of a multi-task stream, in the order in which they come."""
    patterns = parameters.multitask.patterns
    return patterns[client % len(patterns)]


def homes(parameters: StreamParameters, layout: Layout) -> np.ndarray:
    """(clients, classes) int64: the experience in which a client meets a label; NEVER where it has not the task.

    A client's tasks come in the order of its pattern, in as many parts as experiences, whose sizes differ by one at
    most, the larger first; so a client with fewer tasks than experiences has nothing in the last of these.
    """
    home = np.full((parameters.clients, layout.classes), NEVER)
    for client in _clients(parameters):
        arrivals = np.array_split(np.array(pattern(parameters, client)), parameters.experiences)
        for experience, names in enumerate(arrivals):
            for name in names.tolist():
                home[client, layout.named(name).labels] = experience
    return home


def _clients(parameters: StreamParameters) -> range:
    return range(parameters.clients)
