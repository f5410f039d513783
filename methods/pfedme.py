"""Personal models on a leash, by Moreau envelopes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from .aggregation import weighted_mean
from .base import Upload, register
from .fedavg import FedAvg
from .state import Message, Moment, State, prefixed
from .training import Client, Update


@register("pfedme", multitask=True)
class PFedMe(FedAvg):
    """pFedMe: each client's own model theta_i stays near w, which it pulls.

        F_i(w) = min_theta  f_i(theta) + lambda/2 || theta - w ||^2         Dinh, Tran and Nguyen, NeurIPS 2020
        for each minibatch: K steps on theta_i, then   w_i <- w_i - eta lambda ( w_i - theta_i )
        w <- (1 - beta) w + beta sum_i n_i w_i / sum_i n_i

    theta_i starts at w in every round, its steps are the local optimizer's; `personal` is the last one that the client
    had [ours: in the authors' experiments all clients train in every round and the server takes a sample of them].
    Running statistics, which have no gradient, are w's as theta_i leaves them [ours].
    """

    evaluates: ClassVar = {"personal": "client", "global": "server"}

    class Params(FedAvg.Params):
        pull: float = Field(15.0, gt=0, description="lambda, how near personal models stay to the global one")
        inner_steps: int = Field(5, ge=1, description="K, steps of the personal model in a minibatch")
        rate: float = Field(
            0.05, gt=0, description="eta, step size of the global model at a client; the authors have 0.005"
        )
        beta: float = Field(1.0, gt=0, le=1, description="weight of the clients' mean at the server")

    def train(self, client: Client) -> Update:
        p, train = self.params, self.setting.train
        theta = self.begin(client).train()
        w = {name: each.to(self.setting.device, copy=True) for name, each in client.received.part("model").items()}
        weights = {name: each for name, each in theta.named_parameters() if each.requires_grad}
        optimizer, objective = train.optimizer_for(list(weights.values()), client.moment.round), self.objective(client)
        total, steps = torch.zeros((), device=client.data.labels.device), 0
        for batch in client.batches(train):
            for _ in range(p.inner_steps):
                loss = objective(theta, batch)
                optimizer.zero_grad()
                loss.backward()
                if train.clip:  # of f's gradient: a shorter leash would be another lambda
                    nn.utils.clip_grad_norm_(weights.values(), train.clip)
                for name, weight in weights.items():
                    leash = p.pull * (weight.detach() - w[name])
                    weight.grad = leash if weight.grad is None else weight.grad.add_(leash)
                optimizer.step()
            for name, weight in weights.items():
                w[name] -= p.rate * p.pull * (w[name] - weight.detach())
            total, steps = total + loss.detach(), steps + 1
        personal = self.setting.state(theta, client.id)
        w |= {name: each for name, each in personal.items() if name not in weights}
        message = Message(prefixed("model", w))
        return Update(
            State(prefixed("model", personal)), message, theta, float(total) / max(steps, 1), steps * p.inner_steps
        )

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        mean, beta = weighted_mean(uploads), self.params.beta
        if beta < 1:
            mean = {
                name: torch.lerp(server.tensors[name], each, beta) if each.is_floating_point() else each
                for name, each in mean.items()
            }
        return State({**server.tensors, **mean}, server.values)

    def predictor(self, kind: str, server: State, client: State, holder: int) -> nn.Module:
        if kind == "global":
            return super().predictor(kind, server, client, holder)
        own = client.part("model") or self.setting.part(server.part("model"), self.setting.place(holder))
        return self.setting.load(own, holder)
