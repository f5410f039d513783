"""A part of a long vector on the wire: `places` (int32) and `values` (float32), both of a size that is fixed before.

Because sizes are fixed by a fraction, the receiver knows them, and what is sent is as small as was said. Places come
from somebody else: `check` refuses those that do not ascend or lie outside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .decomposition import Layout


def share(fraction: float, size: int) -> int:
    """How many of `size` a fraction is, rounded up: at least one."""
    return min(size, max(1, math.ceil(fraction * size)))


def largest(vector: Tensor, count: int) -> Tensor:
    """The places of the `count` largest entries, ascending, int32; of equal entries the earlier."""
    order = vector.sort(descending=True, stable=True).indices
    return order[:count].sort().values.to(torch.int32)


def template(places: int, values: int) -> dict[str, Tensor]:
    return {"places": torch.empty(places, dtype=torch.int32), "values": torch.empty(values)}


def ascending(places: Tensor, size: int) -> None:
    """Raises ValueError unless `places` are different places of `size`, in ascending order."""
    if len(places) and (places[0] < 0 or places[-1] >= size or (places[1:] <= places[:-1]).any()):
        raise ValueError(f"places that do not ascend within 0 to {size - 1}")


@dataclass(frozen=True)
class Entries:
    """The entries of a vector of `size` with the largest magnitude."""

    size: int
    fraction: float

    def template(self) -> dict[str, Tensor]:
        count = share(self.fraction, self.size)
        return template(count, count)

    def encode(self, vector: Tensor) -> dict[str, Tensor]:
        places = largest(vector.abs(), share(self.fraction, self.size))
        return {"places": places, "values": vector[places.long()]}

    def decode(self, sent: Mapping[str, Tensor]) -> Tensor:
        """(size,), 0 where nothing was sent."""
        return torch.zeros(self.size).index_copy(0, sent["places"].long(), sent["values"])

    def check(self, places: Tensor) -> None:
        ascending(places, self.size)


@dataclass(frozen=True)
class Units:
    """Whole units of each weight of a layout; a place counts the units of its own weight from 0."""

    layout: Layout
    fraction: float

    @property
    def counts(self) -> list[int]:
        return [share(self.fraction, units) for units in self.layout.units]

    def template(self) -> dict[str, Tensor]:
        counts = self.counts
        return template(sum(counts), sum(n * length for n, length in zip(counts, self.layout.lengths, strict=True)))

    def encode(self, vector: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The units of `vector` where `mask`, one number a unit, has the largest magnitude."""
        masks = mask.abs().split(self.layout.units)
        places = torch.cat([largest(own, count) for own, count in zip(masks, self.counts, strict=True)])
        return {"places": places, "values": vector[self.numbers(places)]}

    def numbers(self, places: Tensor) -> Tensor:
        """Where in the vector the values of these units belong, ascending."""
        sent = [torch.zeros(units, dtype=torch.bool) for units in self.layout.units]
        for own, chosen in zip(sent, places.split(self.counts), strict=True):
            own[chosen.long()] = True
        return self.layout.spread(torch.cat(sent)).nonzero().flatten()

    def check(self, places: Tensor) -> None:
        for own, units in zip(places.split(self.counts), self.layout.units, strict=True):
            ascending(own, units)
