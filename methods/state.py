"""What a method keeps and what it sends: named tensors and plain values, nothing hidden.

A round is a function (states, inputs) -> states; because states are explicit it can be cached, checked, resumed after a
kill and moved to another process without the result changing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


class Moment(NamedTuple):
    """A point of an experiment: experience and round inside it, both from 0."""

    experience: int
    round: int


@dataclass(frozen=True)
class State:
    """Named tensors (on the CPU) and plain JSON values. Names are dotted: `model.head.weight`."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below `prefix`, without it: `state.part("model")` is a state dict."""
        start = prefix + "."
        return {name.removeprefix(start): tensor for name, tensor in self.tensors.items() if name.startswith(start)}


class Message(State):
    """A `State` that crosses between client and server. Nothing else crosses."""


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `State.part`: detached CPU tensors under `prefix`."""
    return {f"{prefix}.{name}": tensor.detach().cpu() for name, tensor in tensors.items()}
