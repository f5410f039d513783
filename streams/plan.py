"""The plan of a stream: which class, in which domain, every client meets in which experience; who is there; who lags.

A plan knows classes and clients but no samples. It is all that dealing, checking and looking up need of a scenario.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

NEVER = -1
EVERY = -2  # in every experience: what changes from one to the next is the domain


@dataclass(frozen=True)
class Plan:
    """Who meets what, when. A first axis of 1 instead of `clients` stands for equal rows.

    Attributes:
        home: (clients or 1, classes) int64, the experience in which a client meets a class, or NEVER or EVERY.
        blur: (classes,) float64, fraction of a class's training samples outside of its home.
        domain: (clients or 1, experiences) int64, the domain of a client's inputs; 0 is as in the source.
        first, last: (clients,) int64, the experiences in which a client joins, and after which it leaves.
        behind: (clients,) float64 in [0, 1], how late a client is, in experiences; at least one is 0.
    """

    home: np.ndarray
    blur: np.ndarray
    domain: np.ndarray
    first: np.ndarray
    last: np.ndarray
    behind: np.ndarray

    @property
    def clients(self) -> int:
        return len(self.first)

    @property
    def classes(self) -> int:
        return self.home.shape[1]

    @property
    def experiences(self) -> int:
        return self.domain.shape[1]

    def home_of(self, client: np.ndarray | int, label: np.ndarray | int | slice) -> np.ndarray:
        return self.home[client if len(self.home) > 1 else np.zeros_like(client), label]

    def domain_of(self, client: np.ndarray | int, experience: np.ndarray | int) -> np.ndarray:
        return self.domain[client if len(self.domain) > 1 else np.zeros_like(client), experience]

    def present(self, client: np.ndarray | int, experience: np.ndarray | int) -> np.ndarray:
        """Whether a client is in the federation; arrays broadcast."""
        return (self.first[client] <= experience) & (experience <= self.last[client])

    def within(self, client: int | slice, experience: int) -> np.ndarray:
        """(classes,) bool, or (clients, classes) for a slice: the classes that may be trained on in `experience`."""
        chosen = np.arange(self.clients)[client]
        home = self.home_of(chosen, slice(None))
        meets = (home == experience) | (home == EVERY) | ((home >= 0) & (self.blur > 0))
        return meets & self.present(chosen, experience)[..., None]

    def met(self, client: int | slice, experience: int) -> np.ndarray:
        """(classes,) bool, or (clients, classes) for a slice: the classes met in experiences 0..experience."""
        chosen = np.arange(self.clients)[client]
        first, until = self.first[chosen][..., None], np.minimum(self.last[chosen], experience)[..., None]
        home = self.home_of(chosen, slice(None))
        spread = (home == EVERY) | ((home >= 0) & (self.blur > 0))
        return np.where(spread, first <= until, (first <= home) & (home <= until))

    def shares_of_time(self, label: int, training: bool) -> np.ndarray:
        """(clients, experiences) float64: how a client's samples of a class lie over the experiences, while there.

        A row of zeros is a client that holds none. Rows need not sum to 1: absence is not made up for here.
        """
        home = np.broadcast_to(self.home_of(np.arange(self.clients), label), self.clients)[:, None]
        experience = np.arange(self.experiences)
        blur = self.blur[label] if training and self.experiences > 1 else 0.0
        elsewhere = blur / max(1, self.experiences - 1)
        weights = np.where(home == experience, 1 - blur, np.where(home >= 0, elsewhere, 0.0))
        weights = np.where(home == EVERY, 1 / self.experiences, weights)
        return weights * self.present(np.arange(self.clients)[:, None], experience)

    def to_record(self) -> dict[str, list]:
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @classmethod
    def from_record(cls, record: dict[str, list]) -> Plan:
        kinds = {"blur": np.float64, "behind": np.float64}
        return cls(**{name: np.array(values, kinds.get(name, np.int64)) for name, values in record.items()})
