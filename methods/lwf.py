"""Learning without forgetting by the devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Field
from torch import Tensor, nn

from .base import register
from .experts import Experts, Objective
from .state import Message, State, prefixed
from .training import Batch, Client, cross_entropy, distillation


@register("lwf")
class LwF(Experts):
    """Sequential fine-tuning whose devices stay near what the received model predicted (LwF).

        min CE(e_t on D_t over C_t) + weight tau^2 KL( p_{f_{t-1}} || p_{e_t} on D_t over C_{<t} ),    f_t <- e_t

    Li and Hoiem, ECCV 2016. The care for other tasks is the device's here, in place of a consolidation. The server
    tells the devices which classes the model knows; all of them are one group, in task-incremental streams too. What
    `transfer` measures is this training from the received model against plain training from scratch. (`fedlwf` distils
    over the device's own earlier classes only: where each device comes once it has none, and is `naive`.)
    """

    class Params(Experts.Params):
        temperature: float = Field(2.0, gt=0, description="tau, softens both predictions")
        weight: float = Field(1.0, ge=0, description="weight of the distillation term; 0 is naive")

    def held(self, server: State, age: int) -> Mapping[str, Tensor]:
        return {**super().held(server, age), "seen": server.tensors[f"seen-{age}" if age else "seen"]}

    def objective(self, client: Client) -> Objective:
        received, params = client.received, self.params
        old = [each for each in received.tensors["seen"].nonzero().flatten().tolist() if each not in client.classes]
        teacher = self.setting.load(received.part("model")).eval().requires_grad_(False)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            logits = model(batch.inputs)
            value = cross_entropy(logits, batch.labels, client.classes)
            if len(old) < 2 or not params.weight:  # one class alone has nothing to predict
                return value
            return value + params.weight * distillation(logits, teacher(batch.inputs), old, params.temperature)

        return loss

    def add(self, server: State, message: Message, names: tuple, begun: State | None) -> Iterator[State]:
        yield State(prefixed("model", message.part("model")))
