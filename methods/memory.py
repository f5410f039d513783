"""A client's memory: a bounded set of its own samples, kept in its state and never sent.

memory = Memory.of(client.state)                         what was kept; empty at first
batch = memory.draw(count, generator).batch()            distinct samples, as a network takes them
memory = reservoir(memory, seen, new, budget, generator) a uniform sample of all that was ever met
memory = balanced(memory + new, budget)                  equal shares of classes, the first of each
State(memory.tensors(), ...)                             back into the state
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .state import State, prefixed
from .training import Batch, Client, LocalData, to_float


@dataclass(frozen=True)
class Memory:
    """Samples, one row each in every tensor: `inputs` uint8, `labels` and `experiences` int64, and what else is kept.

    `experiences` says in which experience of the client's a sample was met.
    """

    rows: Mapping[str, Tensor]

    @classmethod
    def of(cls, state: State, prefix: str = "memory") -> Memory:
        """What a client's state holds under `prefix`."""
        return cls(state.part(prefix))

    @classmethod
    def met(cls, client: Client, **more: Tensor) -> Memory:
        """All samples of the client's current experience, on the CPU; `more` has a row for each."""
        labels = client.data.labels.cpu()
        experiences = torch.full_like(labels, client.moment.experience)
        return cls({"inputs": client.data.inputs.cpu(), "labels": labels, "experiences": experiences, **more})

    def tensors(self, prefix: str = "memory") -> dict[str, Tensor]:
        """The inverse of `of`: nothing at all if the memory is empty."""
        return prefixed(prefix, self.rows) if len(self) else {}

    def __len__(self) -> int:
        return len(self.rows["labels"]) if self.rows else 0

    def __getitem__(self, name: str) -> Tensor:
        return self.rows[name]

    def __add__(self, other: Memory) -> Memory:
        """The samples of both; both keep the same about each."""
        if not len(self) or not len(other):
            return self if len(self) else other
        return Memory({name: torch.cat([tensor, other.rows[name]]) for name, tensor in self.rows.items()})

    def take(self, rows: Tensor) -> Memory:
        """The samples `rows`: indices or a mask."""
        return Memory({name: tensor[rows.to(tensor.device)] for name, tensor in self.rows.items()})

    def having(self, **more: Tensor) -> Memory:
        """The same samples, with `more` kept about each."""
        return Memory({**self.rows, **more})

    def to(self, device: torch.device | str) -> Memory:
        return Memory({name: tensor.to(device) for name, tensor in self.rows.items()})

    def draw(self, count: int, draw: torch.Generator) -> Memory:
        """`count` different samples drawn evenly, or all if there are fewer."""
        return self.take(torch.randperm(len(self), generator=draw)[:count])

    def batch(self) -> Batch:
        """All samples as a network takes them."""
        inputs = self.rows["inputs"]
        return Batch(inputs if inputs.dim() == 2 else to_float(inputs), self.rows["labels"])

    def data(self, device: torch.device | str = "cpu") -> LocalData:
        """The samples as a client's data, to be gone through in minibatches."""
        return LocalData(self.rows["inputs"].cpu().numpy(), self.rows["labels"].cpu().numpy(), device)


def reservoir(memory: Memory, seen: int, new: Memory, budget: int, draw: torch.Generator) -> Memory:
    """The memory after `new` has passed by, row by row: a uniform sample of all that ever did.

    The k-th sample in all takes the place k while there is room, then one of 0..k drawn evenly if that is below
    `budget`. Vitter, ACM TOMS 1985, algorithm R.

    Args:
        seen: how many samples passed by before; min(seen, budget) of them are in `memory`.
    """
    numbers = torch.arange(seen, seen + len(new))
    drawn = (torch.rand(len(new), generator=draw, dtype=torch.float64) * (numbers + 1)).long()
    places = torch.where(numbers < budget, numbers, drawn)
    source = dict(enumerate(range(len(memory))))
    source |= {place: len(memory) + row for row, place in enumerate(places.tolist()) if place < budget}
    rows = torch.tensor([source[place] for place in sorted(source)], dtype=torch.long)
    return (memory + new).take(rows) if len(rows) else Memory({})


def groups(memory: Memory) -> list[Tensor]:
    """The rows of each class of each experience, in stored order; by experience, then by class.

    Where the classes are new in every experience, these are the classes. Where they come again (domain-incremental,
    blurry), each experience's samples of a class stand for themselves. [ours]
    """
    if not len(memory):
        return []
    keys = torch.stack([memory["experiences"], memory["labels"]], dim=1)
    _, group = torch.unique(keys, dim=0, return_inverse=True)
    return [(group == number).nonzero().flatten() for number in range(int(group.max()) + 1)]


def balanced(memory: Memory, budget: int) -> Memory:
    """Equal shares of `budget` for all groups: the first budget / groups samples of each, in stored order.

    What does not divide goes to the earliest groups; what a small group leaves free stays free. [ours]
    Rebuffi et al., CVPR 2017, algorithm 5 (the exemplar sets are reduced by dropping their last ones).
    """
    parts = groups(memory)
    if not parts:
        return memory
    share, over = divmod(budget, len(parts))
    kept = torch.cat([rows[: share + (number < over)] for number, rows in enumerate(parts)])
    return memory.take(kept) if len(kept) else Memory({})


@torch.no_grad()
def herding(features: Tensor, count: int) -> Tensor:
    """Rows whose running mean stays nearest to the mean of all: at most `count`, the most important first.

        p_k = argmin_x || mu - 1/k ( phi(x) + sum_{j<k} phi(p_j) ) ||     Rebuffi et al., CVPR 2017, algorithm 4

    Each row is taken once; of equals the first one.

    Args:
        features: phi(x), (samples, width).
    """
    features = features.double()
    mean, total = features.mean(dim=0), torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    chosen = []
    for number in range(1, min(count, len(features)) + 1):
        distance = (mean - (features + total) / number).square().sum(dim=1)
        row = int(distance.masked_fill(~free, torch.inf).argmin())
        chosen.append(row)
        total, free[row] = total + features[row], False
    return torch.tensor(chosen, dtype=torch.long)


def competing(client: Client, classes: int) -> Tensor:
    """(experiences so far, classes) bool: among which classes a sample of each experience is predicted.

    All the client has seen, or in a task-aware stream those of the sample's own experience.
    """
    each: Iterable[tuple[int, ...]] = (*client.earlier, client.classes)
    mask = torch.zeros(client.moment.experience + 1, classes, dtype=torch.bool)
    for row, own in zip(mask, each, strict=True):
        row[list(own if client.task_aware else client.seen)] = True
    return mask


def replayed_cross_entropy(logits: Tensor, kept: Memory, competing: Tensor) -> Tensor:
    """Cross-entropy of samples of several experiences, each over the classes that compete in its own.

    Args:
        logits: (samples, classes) of the samples of `kept`.
        competing: see there.
    """
    allowed = competing.to(logits.device)[kept["experiences"]]
    return F.cross_entropy(logits.masked_fill(~allowed, -torch.inf), kept["labels"])
