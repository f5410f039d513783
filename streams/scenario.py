"""Scenarios: what changes from one experience to the next, and for whom. Each makes a plan, see `plan`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from errors import InputError
from multitask import Layout
from randomness import numpy_generator
from streams.parameters import StreamParameters
from streams.partition import held_classes
from streams.pattern import homes
from streams.plan import EVERY, NEVER, Plan
from streams.sections import Blurry

SCENARIOS: dict[str, Callable[[StreamParameters, Plan], Plan]] = {}


def scenario(name: str):
    """Register a scenario: a function (parameters, empty plan) -> plan."""

    def register(function: Callable) -> Callable:
        SCENARIOS[name] = function
        return function

    return register


def plan(parameters: StreamParameters, classes: int, layout: Layout | None = None) -> Plan:
    """The plan of a stream over `classes` classes, or over the tasks of a layout.

    Raises:
        InputError: there are more experiences or private classes than classes, or nobody would hold a class.
    """
    clients, experiences = parameters.clients, parameters.experiences
    first, last = _stays(parameters)
    empty = Plan(
        home=np.full((1, classes), NEVER),
        blur=np.zeros(classes),
        domain=np.zeros((1, experiences), np.int64),
        first=first,
        last=last,
        behind=_lags(parameters),
    )
    if layout is not None:
        return replace(empty, home=homes(parameters, layout))
    made = SCENARIOS[parameters.scenario](parameters, empty)
    if parameters.partition.kind == "classes":
        made = replace(made, home=held_classes(made, parameters))
    free = np.flatnonzero(~made.met(slice(None), experiences - 1).any(axis=0))
    if len(free):
        others = f" (and {len(free) - 1} more)" if len(free) > 1 else ""
        raise InputError(
            f"class {free[0]}{others} is held by no client: {clients} clients hold partition.per_client "
            f"{parameters.partition.per_client} classes of an experience; raise either, or use order shared"
        )
    return made


@scenario("class-incremental")
@scenario("task-incremental")
def _class_incremental(parameters: StreamParameters, empty: Plan) -> Plan:
    """Every class has one home; the parts of the class order differ by one class at most.

    With order "shared" and no private classes a class has the same home for all, and who joins later has missed it.
    Otherwise a client's own classes are split over the experiences in which it is there. [ours]
    """
    private = _private(parameters, empty, parameters.private)
    if parameters.order == "shared" and private is None:
        return replace(empty, home=_home(parameters, empty, range(empty.experiences), (), None)[None])
    rows, arrivals = [], _arrivals(parameters)
    for client in range(empty.clients):
        names = () if parameters.order == "shared" else ("client", client)
        stay: Sequence[int] = range(empty.first[client], empty.last[client] + 1)
        if arrivals is not None:
            stay = np.flatnonzero(arrivals == client).tolist()
        foreign = None if private is None else (private != NEVER) & (private != client)
        rows.append(_home(parameters, empty, stay, names, foreign))
    return replace(empty, home=np.stack(rows))


@scenario("blurry")
def _blurry(parameters: StreamParameters, empty: Plan) -> Plan:
    """Class-incremental with blurred boundaries: i-Blurry, Koh et al., ICLR 2022.

    A share `disjoint` of the classes keeps to its home; of every other class a fraction `blur` of the training samples
    is dealt evenly over the other experiences. Test samples stay at home.
    """
    about = parameters.blurry or Blurry()
    order = numpy_generator(parameters.seed, "scenario", "blurred classes").permutation(empty.classes)
    blur = np.full(empty.classes, about.blur)
    blur[order[: round(about.disjoint * empty.classes)]] = 0.0
    return replace(_class_incremental(parameters, empty), blur=blur)


@scenario("self-centred")
def _self_centred(parameters: StreamParameters, empty: Plan) -> Plan:
    """Every client has classes of its own, `private` or as many as there are for each; what is left over is shared.

    With an `arrival` the experiences are the clients' visits to the centre: one client in each, with a part of its
    classes. [paper: DAC's sparse, asynchronous stream of experts; ours: as experiences of the stream]
    """
    private = parameters.private or empty.classes // empty.clients
    if private == 0:
        raise InputError(
            f"scenario self-centred: {empty.classes} classes are too few for {empty.clients} clients to have one each"
        )
    return _class_incremental(parameters.model_copy(update={"private": private}), empty)


@scenario("domain-incremental")
def _domain_incremental(parameters: StreamParameters, empty: Plan) -> Plan:
    """All classes in every experience, the inputs in another domain each time.

    Order "shared": domains 0, 1, 2... for all clients; "own": every client meets them in an order of its own.
    """
    domain = np.arange(empty.experiences)[None]
    if parameters.order == "own":
        generators = [numpy_generator(parameters.seed, "scenario", "domain order", i) for i in range(empty.clients)]
        domain = np.stack([generator.permutation(empty.experiences) for generator in generators])
    return replace(empty, home=np.full((1, empty.classes), EVERY), domain=domain)


def _home(
    parameters: StreamParameters,
    empty: Plan,
    stay: Sequence[int],
    names: tuple[str | int, ...],
    foreign: np.ndarray | None,
) -> np.ndarray:
    """(classes,) the class order called `names`, without the classes that are others', split over the stay."""
    order = numpy_generator(parameters.seed, "scenario", "class order", *names).permutation(empty.classes)
    if foreign is not None:
        order = order[~foreign[order]]
    needed = parameters.experiences if parameters.arrival == "together" else len(stay)
    if needed > len(order):
        whose = f"{empty.classes} classes" if foreign is None else f"{len(order)} classes that a client meets"
        if needed < parameters.experiences:
            raise InputError(
                f"experiences {parameters.experiences} is too many: a client that arrives in {needed} of them needs as "
                f"many classes, and there are {len(order)} {whose.partition(' ')[2]} of {parameters.source}"
            )
        raise InputError(
            f"experiences {parameters.experiences} is more than the {whose} of {parameters.source}; "
            f"it can be at most {len(order)}"
        )
    home = np.full(empty.classes, NEVER)
    for experience, part in zip(stay, np.array_split(order, len(stay)), strict=True):
        home[part] = experience
    return home


def _private(parameters: StreamParameters, empty: Plan, private: int) -> np.ndarray | None:
    """(classes,) the client whose class it is alone, NEVER for public classes; None: all are public."""
    if private == 0:
        return None
    if private * empty.clients > empty.classes:
        raise InputError(
            f"private {private} classes for each of {empty.clients} clients are more than the {empty.classes} classes "
            f"of {parameters.source}; it can be at most {empty.classes // empty.clients}"
        )
    owner = np.full(empty.classes, NEVER)
    order = numpy_generator(parameters.seed, "scenario", "private classes").permutation(empty.classes)
    owner[order[: private * empty.clients]] = np.repeat(np.arange(empty.clients), private)
    return owner


def _arrivals(parameters: StreamParameters) -> np.ndarray | None:
    """(experiences,) the client that arrives in each experience; None: all are there together."""
    if parameters.arrival == "together":
        return None
    turns = np.arange(parameters.experiences) % parameters.clients
    if parameters.arrival == "round-robin":
        return turns
    return numpy_generator(parameters.seed, "scenario", "arrival").permutation(turns)


def _stays(parameters: StreamParameters) -> tuple[np.ndarray, np.ndarray]:
    """(clients,) first and last experience of each client."""
    clients, experiences, growth = parameters.clients, parameters.experiences, parameters.growth
    first, last = np.zeros(clients, np.int64), np.full(clients, experiences - 1)
    if growth is None:
        return first, last
    generator = numpy_generator(parameters.seed, "scenario", "growth")
    waiting = generator.permutation(clients).tolist()
    initial = clients if growth.initial == "all" else growth.initial
    there, waiting = waiting[:initial], waiting[initial:]
    for experience in range(1, experiences):
        joining, waiting = waiting[: growth.join], waiting[growth.join :]
        leaving = min(growth.leave, len(there), len(there) + len(joining) - 1)
        gone = set(generator.permutation(there)[:leaving].tolist())
        first[joining] = experience
        last[list(gone)] = experience - 1
        there = [client for client in there if client not in gone] + joining
    return first, last


def _lags(parameters: StreamParameters) -> np.ndarray:
    """(clients,) float64: uniform in [0, lag], moved so that the first client to arrive is at 0."""
    drawn = numpy_generator(parameters.seed, "scenario", "lag").random(parameters.clients)
    return (drawn - drawn.min()) * parameters.lag
