"""Partitions: the share of a class that each client gets, and whole samples for these shares. Pure functions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from errors import InputError
from randomness import numpy_generator
from streams.parameters import StreamParameters
from streams.plan import EVERY, NEVER, Plan

DRAWS = 100_000  # tried before giving up on min_share: a second or so
BATCH = 1_000  # draws at once

KINDS: dict[str, Callable[[StreamParameters, np.ndarray, np.random.Generator], np.ndarray]] = {}


def partition(kind: str):
    """Register a partition: a function (parameters, holders, generator) -> shares."""

    def register(function: Callable) -> Callable:
        KINDS[kind] = function
        return function

    return register


def shares(parameters: StreamParameters, holders: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(h,) float64 that sum to 1: how one class is shared out among the h clients `holders` that can hold it.

    Raises:
        InputError: no draw gives every holder `min_share`.
    """
    return KINDS[parameters.partition.kind](parameters, holders, generator)


@partition("iid")
@partition("classes")  # which classes a client holds is in the plan, see `held_classes`
def _equal(parameters: StreamParameters, holders: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return np.full(len(holders), 1 / len(holders))


@partition("dirichlet")
def _dirichlet(parameters: StreamParameters, holders: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Dirichlet(alpha, ..., alpha) conditional on every share being min_share or more, by drawing again."""
    alpha, least = parameters.partition.alpha, parameters.partition.min_share
    concentration = np.full(len(holders), alpha)
    if least == 0:
        return generator.dirichlet(concentration)
    for _ in range(DRAWS // BATCH):
        drawn = generator.dirichlet(concentration, size=BATCH)
        fit = np.flatnonzero(drawn.min(axis=1) >= least)
        if len(fit):
            return drawn[fit[0]]
    raise InputError(
        f"partition.min_share {least:g} is not reached by all {len(holders)} clients in {DRAWS} draws with "
        f"partition.alpha {alpha:g}; lower min_share, raise alpha or use fewer clients"
    )


@partition("quantity")
def _quantity(parameters: StreamParameters, holders: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Client weights from LogNormal(0, sigma), the same for every class."""
    whole = numpy_generator(parameters.seed, "partition", "quantity")
    weights = whole.lognormal(0.0, parameters.partition.sigma, parameters.clients)[holders]
    return weights / weights.sum()


def held_classes(plan: Plan, parameters: StreamParameters) -> np.ndarray:
    """(clients, classes) home: of each experience's classes a client keeps `per_client`, NEVER for the others.

    Client after client, in an order by lot, takes those that the fewest hold so far, so that every class is held if
    that is possible with a shared order, and held by equally many.
    """
    generator = numpy_generator(parameters.seed, "partition", "classes")
    home = np.full((plan.clients, plan.classes), NEVER)
    holders = np.zeros(plan.classes, np.int64)
    for client in generator.permutation(plan.clients):
        meets = plan.home_of(client, slice(None))
        for experience in np.unique(meets):
            if experience != EVERY and not plan.present(client, experience):
                continue
            there = generator.permutation(np.flatnonzero(meets == experience))
            taken = there[np.argsort(holders[there], kind="stable")[: parameters.partition.per_client]]
            home[client, taken] = experience
            holders[taken] += 1
    return home


def apportion(total: int, shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(n,) int64 counts that sum to `total`, within one of total * shares (largest remainder).

    Equal remainders are ordered by lot; by index, the first clients would get the odd sample of every class.
    """
    exact = total * shares
    counts = np.floor(exact).astype(np.int64)
    lot = generator.permutation(len(shares))
    largest = np.lexsort((lot, counts - exact))
    counts[largest[: total - counts.sum()]] += 1
    return counts


def apportion_rows(totals: np.ndarray, weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(n, m) int64 counts whose rows sum to `totals`, each within one of its row's exact part (systematic sampling).

    Every count is right on average, also where a row has a single sample: by largest remainder, clients with few
    samples would never get one of a small part. The rows' offsets are spread evenly, so columns come out even, too.

    Args:
        totals: (n,) int64.
        weights: (n, m) float64, not negative; rows with a total above 0 have a sum above 0.
    """
    rows = len(totals)
    offset = (generator.permutation(rows) + generator.random()) / max(1, rows)
    ends = np.cumsum(weights, axis=1)
    ends = np.where(ends == ends[:, -1:], 1.0, ends / np.where(ends[:, -1:] > 0, ends[:, -1:], 1.0))
    return np.diff(np.floor(ends * totals[:, None] + offset[:, None]).astype(np.int64), prepend=0, axis=1)
