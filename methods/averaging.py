"""Experts averaged parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .aggregation import middle
from .base import register
from .experts import Experts
from .fisher import diagonal
from .state import Message, Moment, State, prefixed
from .training import Client


@register("averaging")
class Averaging(Experts):
    """Parameter averaging: the mean of all experts so far.

        f_t = 1/t sum_{s<=t} e_s                                    weights: equal [field]
        f_t = sum_s F_s e_s / sum_s F_s,  element by element        weights: fisher; Matena & Raffel, NeurIPS 2022

    F_s is the diagonal Fisher information of expert s on its own data, which the device computes and hands in, at the
    cost of a second model's bytes. BatchNorm's statistics are averaged equally.
    """

    class Params(Experts.Params):
        weights: Literal["equal", "fisher"] = Field("equal", description="of the experts: equal or fisher")
        fisher_samples: int = Field(200, ge=1, description="samples that an expert's Fisher information is computed on")

    def besides(self, client: Client, model: nn.Module) -> Mapping[str, Tensor]:
        if self.params.weights == "equal":
            return {}
        draw = client.generator("fisher")
        found = diagonal(model, client.data, client.classes, self.params.fisher_samples, draw)
        return prefixed("fisher", {name: each + LEAST for name, each in found.items()})

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        plain = super().expects(server, client, moment)
        if self.params.weights == "equal":
            return plain
        parameters = dict(self.setting.load(self.setting.initial_model()).named_parameters())
        return {**plain, **prefixed("fisher", parameters)}

    def check(self, message: Message) -> None:
        super().check(message)
        for name, each in message.part("fisher").items():
            if not (each > 0).all():
                raise ValueError(f"Fisher information is above 0 (fisher.{name} holds {each.min().item():g})")

    def first(self, server: State, message: Message) -> State:
        return State({**super().first(server, message).tensors, **prefixed("fisher", message.part("fisher"))})

    def add(self, server: State, message: Message, names: tuple, begun: State | None) -> Iterator[State]:
        model, expert = server.part("model"), message.part("model")
        after = middle(model, expert, 1 / (server.values["added"] + 1))
        total = server.part("fisher")
        for name, own in message.part("fisher").items():
            after[name] = (total[name] * model[name] + own * expert[name]) / (total[name] + own)
            total[name] = total[name] + own
        yield State({**prefixed("model", after), **prefixed("fisher", total)})


LEAST = torch.finfo(torch.float32).eps  # where nobody's information says anything all experts count alike
