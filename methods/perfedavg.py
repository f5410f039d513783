"""A model that one step makes personal."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from .base import register
from .fedavg import FedAvg
from .fedavg_ft import FedAvgFT
from .state import Message, prefixed
from .training import Batch, Client, Update


@register("perfedavg", multitask=True)
class PerFedAvg(FedAvgFT):
    """Per-FedAvg: the server's model is the one from which a gradient step on a client's data helps most.

        min_w  1/n sum_i f_i( w - alpha grad f_i(w) )         Fallah, Mokhtari and Ozdaglar, NeurIPS 2020
        w' = w - alpha grad f_i(w; D),    w <- w - beta grad f_i(w'; D')      first-order: the Hessian is left out

    D is the minibatch before D' (the first is both); beta's step is the local optimizer's. With alpha = 0 this is
    FedAvg to the last bit. At the end a client takes `tuning_epochs` passes of plain alpha steps from the server's
    model [paper: a step; ours: passes, as fedavg_ft].
    """

    class Params(FedAvg.Params):
        tuning_epochs: int = Field(3, ge=1, description="passes over a client's own data in its last step")
        alpha: float = Field(0.01, ge=0, description="step size of the personal step")

    def train(self, client: Client) -> Update:
        model, train = self.begin(client).train(), self.setting.train
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer, objective = train.optimizer_for(weights, client.moment.round), self.objective(client)
        total, steps = torch.zeros((), device=client.data.labels.device), 0
        before = None
        for batch in client.batches(train):
            total += self.step(model, weights, optimizer, objective, before or batch, batch)
            before, steps = batch, steps + 1
        message = Message(prefixed("model", self.setting.state(model, client.id)))
        return Update(client.state, message, model, float(total) / max(steps, 1), steps)

    def step(self, model, weights, optimizer, objective, support: Batch, query: Batch) -> Tensor:
        """One step of w by the gradient at w' = w - alpha grad f(w; support); returns f(w'; query)."""
        before = [weight.detach().clone() for weight in weights]
        if self.params.alpha:
            descend(objective(model, support), weights, self.params.alpha)
        loss = objective(model, query)
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)
        if self.setting.train.clip:
            nn.utils.clip_grad_norm_(weights, self.setting.train.clip)
        optimizer.step()
        return loss.detach()

    def tuned(self, client: Client) -> tuple[nn.Module, float, int]:
        model = self.begin(client).train()
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        train = self.setting.train.model_copy(update={"local_epochs": self.params.tuning_epochs})
        objective, total, steps = self.objective(client), 0.0, 0
        for batch in client.batches(train):
            loss = objective(model, batch)
            descend(loss, weights, self.params.alpha)
            total, steps = total + loss.detach(), steps + 1
        return model, float(total) / max(steps, 1), steps


def descend(loss: Tensor, weights: list[nn.Parameter], rate: float) -> None:
    """One plain gradient step of the weights, in place."""
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    with torch.no_grad():
        for weight, gradient in zip(weights, found, strict=True):
            if gradient is not None:  # of a head whose task is not in the batch
                weight -= rate * gradient
