"""FedAvg with control variates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from .base import Setting, Upload, register
from .fedavg import FedAvg
from .local_steps import accumulation, require_sgd
from .state import Message, Moment, State, prefixed
from .training import Client, Update, fit


@register("scaffold")
class Scaffold(FedAvg):
    """Clients correct their steps by how their gradients differ from everyone's.

        y <- x;  K times:  y <- y - eta_l (g_i(y) - c_i + c)
        c_i+ = c_i - c + (x - y) / (K eta_l)                      option II
        x <- x + eta_g mean_i (y_i - x),    c <- c + |S|/N mean_i (c_i+ - c_i)

    Karimireddy et al., ICML 2020, algorithm 1. S are the round's clients, N all: since every c_i starts at 0, c is
    always the mean of all N of them. Up go the model and c_i+ - c_i, down the model and c.

    The mean of the models is weighted by samples as in FedAvg, that of the control variates is not [field: Li et al.,
    ICDE 2022, NIID-Bench]; so with control variates of zero this is FedAvg. Local momentum, which the paper does not
    have, replaces K by the sum of the accumulated weights, so that c_i stays a mean of gradients [ours]. Running
    statistics are averaged as in FedAvg. Nothing changes at the end of an experience: the paper knows of none.
    """

    class Params(FedAvg.Params):
        server_learning_rate: float = Field(1.0, gt=0, description="eta_g, step size of the server")

    def __init__(self, params: FedAvg.Params, setting: Setting) -> None:
        super().__init__(params, setting)
        require_sgd(setting.train, self.name)

    def start(self) -> State:
        return State({**super().start().tensors, **self.zeros()})

    def start_client(self, client: int) -> State:
        return State(self.zeros())

    def zeros(self) -> dict[str, Tensor]:
        """A control variate before any gradient is known: one number a parameter, none for buffers."""
        model = self.setting.load(self.setting.initial_model())
        return prefixed("control", {name: torch.zeros_like(w) for name, w in model.named_parameters()})

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        return dict.fromkeys(clients, Message(server.tensors))

    def train(self, client: Client) -> Update:
        received, device, train = client.received.part("model"), self.setting.device, self.setting.train
        everyones, own = client.received.part("control"), client.state.part("control")
        correction = {name: (c - own[name]).to(device) for name, c in everyones.items()}

        def correct(model: nn.Module) -> None:
            for name, w in model.named_parameters():
                w.grad.add_(correction[name])

        model = self.setting.load(received)
        loss, steps = fit(model, client, train, self.objective(client), correct)
        after = prefixed("model", model.state_dict())
        moved = train.learning_rate * accumulation(steps, train.momentum)  # K eta_l
        change = {name: (received[name] - after[f"model.{name}"]) / moved - c for name, c in everyones.items()}
        state = State(prefixed("control", {name: own[name] + change[name] for name in own}))
        return Update(state, Message({**after, **prefixed("control", change)}), model, loss, steps)

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        return server.tensors

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        """As FedAvg, then eta_g: lerp(x, mean, 1) is the mean to the last bit."""
        mean = super().fuse(job, server, uploads, moment).part("model")
        x, control = server.part("model"), server.part("control")
        step = self.params.server_learning_rate
        model = {name: torch.lerp(x[name], w, step) if name in control else w for name, w in mean.items()}
        total = {name: c.double() for name, c in control.items()}
        for upload in uploads:
            for name, change in upload.message.part("control").items():
                total[name].add_(change, alpha=1 / self.setting.clients)
        control = {name: c.to(control[name].dtype) for name, c in total.items()}
        return State({**prefixed("model", model), **prefixed("control", control)})
