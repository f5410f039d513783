"""Personal heads on a shared body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from .base import register
from .fedavg import FedAvg
from .state import Message, Moment, State
from .training import Client, Update

HEAD = "head."  # of every network here


@register("fedper", multitask=True)
class FedPer(FedAvg):
    """FedAvg of the base layers; the personalisation layers, here the head, never leave their client.

        w_B <- sum_i n_i w_B,i / sum_i n_i,    w_P,i stays           Arivazhagan et al., arXiv 1912.00818

    Both are trained together. All clients begin with the same head; the server's model has one that is never trained,
    so that `personal` is all there is.
    """

    evaluates: ClassVar = {"personal": "client"}

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        every = super().broadcast(server, clients, moment)
        shared = {id(message): Message(self.base(message.tensors)) for message in every.values()}
        return {client: shared[id(message)] for client, message in every.items()}

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        return self.base(super().expects(server, client, moment))

    def base(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of a model's tensors `model.NAME` that are shared."""
        return {name: each for name, each in tensors.items() if not name.startswith(f"model.{HEAD}")}

    def begin(self, client: Client) -> nn.Module:
        return self.setting.load({**self.own(client.state, client.id), **client.received.part("model")}, client.id)

    def own(self, state: State, client: int) -> dict[str, Tensor]:
        """A client's own head, before its first training the one that all begin with."""
        first = self.setting.initial_model(self.setting.place(client))
        return state.part("model") or {name: each for name, each in first.items() if name.startswith(HEAD)}

    def train(self, client: Client) -> Update:
        update = super().train(client)
        tensors = update.message.tensors
        head = {name: each for name, each in tensors.items() if name.startswith(f"model.{HEAD}")}
        return Update(State(head), Message(self.base(tensors)), update.model, update.loss, update.steps)

    def predictor(self, kind: str, server: State, client: State, holder: int) -> nn.Module:
        shared = self.setting.part(server.part("model"), self.setting.place(holder))
        return self.setting.load({**shared, **self.own(client, holder)}, holder)
