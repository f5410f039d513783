"""Elastic weight consolidation, federated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from .base import register
from .fisher import Held, pull
from .state import Message, Moment, State, prefixed
from .teacher import Taught
from .training import Client, Update


@register("fedewc")
class FedEWC(Held, Taught):
    """FedAvg whose clients are held where the parameters mattered to earlier experiences (online EWC).

        L = CE(theta) + lambda/2 * sum_k F*_k (theta_k - theta*_k)^2            Kirkpatrick et al., PNAS 2017
        F* <- gamma F* + F,   theta* <- theta   when an experience ends         Schwarz et al., ICML 2018 (online EWC)

    F is the diagonal Fisher information of the experience that ends: in its last round each client computes it on its
    own data at the model it has just trained and uploads it beside the model, the server averages by samples; theta*
    is the global model in the end. [field] F* and theta* go down once per client and experience, see `Taught`. A pull
    is never stronger than a step to the anchor, see `fisher.pull`. [ours]

    The cross-entropy runs over the current classes, see `fisher.Held` [ours]; with `compete: seen` and lambda 0 this
    is FedAvg, and with one experience it always is, to the last bit.
    """

    lesson: ClassVar = ("previous", "fisher")

    class Params(Held.Params):
        strength: float = Field(100.0, ge=0, description="lambda, weight of the pull; 0 is none")
        decay: float = Field(1.0, ge=0, le=1, description="gamma, what an experience leaves of the information before")

    def consolidates(self, moment: Moment) -> bool:
        """Whether at the server's `moment` an experience ends after which another one comes."""
        last = moment.round == self.setting.train.rounds - 1
        return last and moment.experience < self.setting.experiences - 1

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        messages = super().broadcast(server, clients, moment)
        if not self.consolidates(moment):
            return messages
        asked = {id(each): Message(each.tensors, {**each.values, "consolidates": True}) for each in messages.values()}
        return {client: asked[id(each)] for client, each in messages.items()}

    def train(self, client: Client) -> Update:
        update = super().train(client)
        if not client.received.values.get("consolidates"):
            return update
        information = prefixed("new", self.information(client, update.model))
        return replace(update, message=Message({**update.message.tensors, **information}))

    def hold(self, client: Client):
        fisher = State(self.taught(client)).part("fisher")
        stiffness = {name: self.params.strength * each for name, each in fisher.items()}
        setting = self.setting
        return pull(stiffness, self.teacher(client), setting.train.learning_rate, setting.device) if fisher else None

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        model = super().expects(server, client, moment)
        return {**model, **prefixed("new", self.like_parameters(server))} if self.consolidates(moment) else model

    def check(self, message: Message) -> None:
        wrong = [name for name, each in message.part("new").items() if (each < 0).any()]
        if wrong:
            raise ValueError(f"Fisher information is at least 0, that of {', '.join(wrong)} is not")

    def end_experience(self, server: State, experience: int) -> State:
        ended = super().end_experience(server, experience)
        fisher, new = ended.part("fisher"), ended.part("new")  # of the clients' `new` the mean by samples
        total = {name: self.params.decay * fisher[name] + each if fisher else each for name, each in new.items()}
        kept = {name: tensor for name, tensor in ended.tensors.items() if not name.startswith("new.")}
        return State({**kept, **prefixed("fisher", total)}, ended.values)
