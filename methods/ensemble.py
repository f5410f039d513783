"""Experts that are kept apart and asked together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn

from models.experts import Averaged, LeastEntropy
from validation import Section

from .base import register
from .experts import Experts
from .state import Message, Moment, State, prefixed
from .training import Client


@register("ensemble")
class Ensemble(Experts):
    """Ensemble of all experts: the centre keeps every one and averages their predictions.

    p(k|x) = mean over experts of soft-max over their own classes. Its memory and its time grow with every expert:
    an upper bound for ways to make one model of them. Every expert starts from the initial model, since there is no
    consolidated one to start from [ours].
    """

    asks: ClassVar[type[Averaged]] = Averaged
    stale = 0

    class Params(Section):
        pass

    def measures(self, client: Client) -> bool:
        return False

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        message = Message(prefixed("model", self.setting.initial_model()), {"added": 0})
        return dict.fromkeys(clients, message)

    def first(self, server: State, message: Message) -> State:
        return next(self.add(server, message, (), None))

    def add(self, server: State, message: Message, names: tuple, begun: State | None) -> Iterator[State]:
        number = server.values["added"]
        expert = prefixed(f"expert-{number}", message.part("model"))
        known = [server.tensors["known"]] if number else []
        yield State(
            {**server.tensors, **expert, "known": torch.cat([*known, message.tensors["classes"][None]])},
        )

    def predictor(self, kind: str, server: State, client: State, holder: int) -> nn.Module:
        count = server.values["added"]
        if not count:
            return self.setting.load(server.part("model"))
        experts = [self.setting.load(server.part(f"expert-{number}")).eval() for number in range(count)]
        return self.asks(experts, server.tensors["known"].to(self.setting.device))


@register("min_entropy")
class MinEntropy(Ensemble):
    """Ensemble whose least uncertain expert decides alone.

    n*(x) = argmin_n H(p_n(x)) / log |C_n|. [field: the choice by entropy of Wortsman et al., NeurIPS 2020]
    """

    asks: ClassVar[type[Averaged]] = LeastEntropy
