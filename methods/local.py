"""Each client alone."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from .base import Method, register
from .objectives import plain
from .state import State, prefixed
from .training import Batch, Client, Update, fit


@register("local", multitask=True)
class Local(Method):
    """Each client alone: plain fine-tuning on its own stream, nothing crosses.

    theta_i <- argmin CE(theta_i; D_i^t)   started from the previous experience's theta_i          [field]
    """

    evaluates: ClassVar = {"personal": "client"}
    heterogeneous = True

    def start_client(self, client: int) -> State:
        return State(prefixed("model", self.setting.initial_model(self.setting.place(client))))

    def train(self, client: Client) -> Update:
        model = self.setting.load(client.state.part("model"), client.id)

        def objective(model: nn.Module, batch: Batch) -> Tensor:
            return plain(model, batch, client.candidates)

        loss, steps = fit(model, client, self.setting.train, objective)
        return Update(State(prefixed("model", model.state_dict())), None, model, loss, steps)

    def predictor(self, kind: str, server: State, client: State, holder: int) -> nn.Module:
        return self.setting.load(client.part("model"), holder)
