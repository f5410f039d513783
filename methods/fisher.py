"""Fisher information: how much each parameter matters to a model's predictions, and what holds it in place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from .fedavg import FedAvg
from .state import State
from .training import Batch, Client, LocalData

Information = dict[str, Tensor]  # a number at least 0 for each element of each parameter, by the parameter's name


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def diagonal(
    model: nn.Module, data: LocalData, classes: Sequence[int], samples: int, draw: torch.Generator
) -> Information:
    """The diagonal of the Fisher information at `model`, on the CPU.

        F = mean_x ( d log p_theta(y|x) / d theta )^2,   y drawn from p_theta(.|x) over `classes`

    y comes from the model: with the data's labels it would be the "empirical" one, which is not an estimate of it and
    vanishes where the data are learned (Kunstner et al., NeurIPS 2019); one draw for each x. [field]
    The samples go through the network one by one, in evaluation mode: torch.func.vmap took 0.4 to 1.7 times as long
    on a CPU, by network, and needs the gradients of all samples at once. [checked]

    Args:
        samples: how many of the data are looked at, drawn evenly; all if there are fewer.
    """
    model.eval()
    parameters, index = trainable(model), torch.as_tensor(classes, device=data.labels.device)
    total = {name: torch.zeros_like(parameter, requires_grad=False) for name, parameter in parameters.items()}
    rows = torch.randperm(len(data), generator=draw)[:samples]
    for row, chance in zip(rows.split(1), torch.rand(len(rows), generator=draw).tolist(), strict=True):
        log_p = model(data.batch(row.to(index.device)).inputs)[0, index].log_softmax(dim=0)
        drawn = (log_p.detach().exp().cumsum(dim=0) <= chance).sum().clamp(max=len(index) - 1)
        gradients = torch.autograd.grad(log_p[drawn], list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:  # the network may have parameters that its answer does not depend on
                total[name] += gradient.square()
    return {name: (each / len(rows)).cpu() for name, each in total.items()}


def pull(
    stiffness: Information, centre: Mapping[str, Tensor], learning_rate: float, device: torch.device | str
) -> Callable[[nn.Module], Tensor]:
    """1/2 sum_k s_k (theta_k - c_k)^2 as a function of a model, s_k at most 1 / learning_rate.

    Gradient descent on s/2 (theta - c)^2 diverges where s > 2 / learning_rate, and Fisher information spans orders of
    magnitude: at the bound a step of SGD ends in the centre, and no pull is stronger than that. [ours]

    Args:
        stiffness, centre: s and c; a parameter that is not there is free.
    """
    stiffness = {name: each.to(device).clamp(0, 1 / learning_rate) for name, each in stiffness.items()}
    centre = {name: each.to(device) for name, each in centre.items()}

    def value(model: nn.Module) -> Tensor:
        parameters = trainable(model)
        return sum((s * (parameters[name] - centre[name]).square()).sum() for name, s in stiffness.items()) / 2

    return value


class Held(FedAvg):
    """FedAvg whose clients are held where the Fisher information says so; subclasses say whose and where.

    `compete`: with the one head of a class-incremental stream, a cross-entropy over all seen classes pushes the old
    ones' outputs down whatever holds the parameters (van de Ven et al., Nature Machine Intelligence 2022: EWC keeps
    nothing there). So by default the current classes alone compete, as in fedlwf. [ours]
    """

    class Params(FedAvg.Params):
        strength: float = Field(1.0, ge=0, description="lambda, weight of the pull; 0 is none")
        fisher_samples: int = Field(200, ge=1, description="samples that a client's information is computed on")
        compete: Literal["current", "seen"] = Field(
            "current", description="classes of the cross-entropy: the current experience's, or all seen as in FedAvg"
        )

    def start(self) -> State:
        state = super().start()
        return State(
            state.tensors, {**state.values, "parameters": sorted(trainable(self.setting.load(state.part("model"))))}
        )

    def objective(self, client: Client):
        plain, hold = super().objective(self.competing(client)), self.hold(client)
        if hold is None or not self.params.strength:
            return plain

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return plain(model, batch) + hold(model)

        return loss

    @abstractmethod
    def hold(self, client: Client) -> Callable[[nn.Module], Tensor] | None:
        """The pull on the client's model in this round; None where nothing pulls yet."""

    def competing(self, client: Client) -> Client:
        """The client whose `candidates` are the classes that compete."""
        return replace(client, task_aware=True) if self.params.compete == "current" else client

    def information(self, client: Client, model: nn.Module) -> Information:
        """The diagonal Fisher information of the client's current data at `model`."""
        classes, samples = self.competing(client).candidates, self.params.fisher_samples
        return diagonal(model, client.data, classes, samples, client.generator("fisher"))

    def like_parameters(self, server: State) -> dict[str, Tensor]:
        """Tensors of the shape and type of each trainable parameter."""
        return {name: server.tensors[f"model.{name}"] for name in server.values["parameters"]}
