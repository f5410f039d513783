"""Partitions: the share of a class that each client gets, and whole samples for these shares. Pure functions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from errors import InputError
from streams.parameters import Partition

DRAWS = 100_000  # tried before giving up on min_share: a second or so
BATCH = 1_000  # draws at once

KINDS: dict[str, Callable[[Partition, int, np.random.Generator], np.ndarray]] = {}


def partition(kind: str):
    """Register a partition: a function (parameters, clients, generator) -> shares."""

    def register(function: Callable) -> Callable:
        KINDS[kind] = function
        return function

    return register


def shares(parameters: Partition, clients: int, generator: np.random.Generator) -> np.ndarray:
    """(clients,) float64, each at least min_share, summing to 1: how one class is shared out.

    Raises:
        InputError: no draw gives every client `min_share`.
    """
    return KINDS[parameters.kind](parameters, clients, generator)


@partition("iid")
def _iid(parameters: Partition, clients: int, generator: np.random.Generator) -> np.ndarray:
    return np.full(clients, 1 / clients)


@partition("dirichlet")
def _dirichlet(parameters: Partition, clients: int, generator: np.random.Generator) -> np.ndarray:
    """Dirichlet(alpha, ..., alpha) conditional on every share being min_share or more, by drawing again."""
    concentration = np.full(clients, parameters.alpha)
    if parameters.min_share == 0:
        return generator.dirichlet(concentration)
    for _ in range(DRAWS // BATCH):
        drawn = generator.dirichlet(concentration, size=BATCH)
        fit = np.flatnonzero(drawn.min(axis=1) >= parameters.min_share)
        if len(fit):
            return drawn[fit[0]]
    raise InputError(
        f"partition.min_share {parameters.min_share:g} is not reached by all {clients} clients in {DRAWS} draws with "
        f"partition.alpha {parameters.alpha:g}; lower min_share, raise alpha or use fewer clients"
    )


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
