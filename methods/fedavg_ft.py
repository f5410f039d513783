"""FedAvg, then fine-tuning where the data are."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from .base import register
from .fedavg import FedAvg
from .state import State, prefixed
from .training import Client, TrainParameters, Update, fit


@register("fedavg_ft", multitask=True)
class FedAvgFT(FedAvg):
    """FedAvg; after all rounds every client fine-tunes the last model on its own data and keeps it.

        theta_i <- argmin F_i, started from the final theta                                                  [field]

    The plainest personalisation there is, and TAP's teacher T_i. Until the last step `personal` is the server's model.
    """

    finishes = True
    evaluates: ClassVar = {"personal": "client", "global": "server"}

    class Params(FedAvg.Params):
        tuning_epochs: int = Field(3, ge=1, description="passes over a client's own data in its last step")
        tuning_rate: float = Field(
            0.3, gt=0, description="step size of the last step, as a share of train.learning_rate"
        )

    def finish(self, client: Client) -> Update:
        model, loss, steps = self.tuned(client)
        state = State({**client.state.tensors, **prefixed("model", self.setting.state(model, client.id))})
        return Update(state, None, model, loss, steps)

    def tuned(self, client: Client) -> tuple[nn.Module, float, int]:
        """The received model, fine-tuned; its mean loss and its steps."""
        model = self.begin(client)
        return model, *fit(model, client, self.last_train(self.params.tuning_epochs), self.objective(client))

    def last_train(self, epochs: int) -> TrainParameters:
        """How clients train in their last step. [ours] With smaller steps: a fresh optimizer's first ones are rough."""
        rate = self.params.tuning_rate * self.setting.train.learning_rate
        return self.setting.train.model_copy(update={"local_epochs": epochs, "learning_rate": rate})

    def predictor(self, kind: str, server: State, client: State, holder: int) -> nn.Module:
        if kind == "global":
            return super().predictor(kind, server, client, holder)
        own = client.part("model") or self.setting.part(server.part("model"), self.setting.place(holder))
        return self.setting.load(own, holder)
