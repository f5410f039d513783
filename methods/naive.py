"""Sequential fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator

from .base import register
from .experts import Experts
from .state import Message, State, prefixed


@register("naive")
class Naive(Experts):
    """Sequential fine-tuning: the last expert is the model.

    f_t <- e_t. It forgets: the floor for every way of consolidating experts. [field]
    """

    def add(self, server: State, message: Message, names: tuple, begun: State | None) -> Iterator[State]:
        yield State(prefixed("model", message.part("model")))
