"""Scenarios: which class a client meets in which experience. The plan is all that the rest needs to know of one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from errors import InputError
from randomness import numpy_generator
from streams.parameters import StreamParameters

SCENARIOS: dict[str, Callable[[StreamParameters, int], np.ndarray]] = {}


def scenario(name: str):
    """Register a scenario: a function (parameters, classes) -> plan."""

    def register(function: Callable) -> Callable:
        SCENARIOS[name] = function
        return function

    return register


def plan(parameters: StreamParameters, classes: int) -> np.ndarray:
    """(clients, classes) int64: the experience in which a client meets a class.

    With order "shared" all rows are one row of memory.

    Raises:
        InputError: there are more experiences than classes.
    """
    return SCENARIOS[parameters.scenario](parameters, classes)


@scenario("class-incremental")
def _class_incremental(parameters: StreamParameters, classes: int) -> np.ndarray:
    """Every class belongs to one experience; the parts of the class order differ by one class at most."""
    if parameters.experiences > classes:
        raise InputError(
            f"experiences {parameters.experiences} is more than the {classes} classes of {parameters.source}; "
            f"it can be at most {classes}"
        )
    parts = np.array_split(np.arange(classes), parameters.experiences)
    experience_of_place = np.repeat(np.arange(parameters.experiences), [len(part) for part in parts])

    def row(*names: str | int) -> np.ndarray:
        order = numpy_generator(parameters.seed, "scenario", "class order", *names).permutation(classes)
        experience_of = np.empty(classes, np.int64)
        experience_of[order] = experience_of_place
        return experience_of

    if parameters.order == "shared":
        return np.broadcast_to(row(), (parameters.clients, classes))
    return np.stack([row("client", client) for client in range(parameters.clients)])
