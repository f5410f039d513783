"""Prototypes instead of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from errors import InputError
from models import build
from models.prototypes import NearestPrototype

from .base import Method, Setting, Upload, register
from .state import Message, Moment, State, prefixed
from .training import Batch, Client, Update, cross_entropy, fit

BATCH = 512  # samples at a time where no gradients are needed


@register("fedproto")
class FedProto(Method):
    """Clients share the means of their classes' features, not their networks.

        C_ij = mean of f_i(x) over D_ij,    C_j <- sum_i n_ij C_ij / sum_i n_ij
        L_i = CE( F_i(x), y ) + weight * mean ( f_i(x) - C_y )^2
        y^(x) = argmin_j || f_i(x) - C_j ||

    Tan et al., AAAI 2022. C_ij are client i's prototypes of the n_ij samples D_ij of class j, C_j the global ones. The
    distance is taken sample by sample and averaged over samples and features, as in the authors' code [code]; samples
    of a class that has no global prototype yet add nothing. The paper's formula for C_j divides by the number of
    clients once more, which its objective does not and which would shrink the prototypes: left out [ours].

    Networks may differ, but not in the length of their features. Every client keeps its own network and never sends
    it. The global prototypes of classes that nobody trains any more stay as they were [ours: the paper knows of no
    experiences]. Prototypes travel as a table of all classes, with the number of samples behind each (0: none), which
    the server bounds by the client's samples.

    `personal` is the client's network with the paper's rule, nearest global prototype; `head` the same network's head.
    """

    evaluates: ClassVar = {"personal": "client", "head": "client"}
    heterogeneous = True

    class Params(Method.Params):
        weight: float = Field(1.0, ge=0, description="lambda, weight of the distance to the prototypes; 0 is none")

    def __init__(self, params: Params, setting: Setting) -> None:
        super().__init__(params, setting)
        widths = [build(each.name, each.shape, each.classes, **each.options).width for each in setting.architectures]
        if len(set(widths)) > 1:
            raise InputError(
                f"models.*.features must be the same for all networks of {self.name}, which share prototypes "
                f"(got features of {', '.join(map(str, widths))} numbers)"
            )
        self.table = (setting.architecture.classes, widths[0])

    # the server

    def start(self) -> State:
        return State({"prototypes": torch.zeros(self.table), "known": torch.zeros(self.table[0], dtype=torch.bool)})

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        return dict.fromkeys(clients, Message(server.tensors))

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        return {"prototypes": torch.zeros(self.table), "counts": torch.zeros(self.table[0], dtype=torch.int64)}

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        total, samples = torch.zeros(self.table, dtype=torch.float64), torch.zeros(self.table[0], dtype=torch.float64)
        for upload in uploads:
            tensors = upload.message.tensors
            counts = tensors["counts"].clamp(0, upload.samples).double()
            total += counts[:, None] * tensors["prototypes"]
            samples += counts
        new = samples > 0
        means = (total / samples.clamp(min=1)[:, None]).float()
        return State(
            {
                "prototypes": torch.where(new[:, None], means, server.tensors["prototypes"]),
                "known": server.tensors["known"] | new,
            }
        )

    # the client

    def start_client(self, client: int) -> State:
        return State(prefixed("model", self.setting.initial_model(self.setting.place(client))))

    def train(self, client: Client) -> Update:
        model = self.setting.load(client.state.part("model"), client.id)
        loss, steps = fit(model, client, self.setting.train, self.objective(client))
        means, counts = self.prototypes(model, client)
        message = Message({"prototypes": means.float().cpu(), "counts": counts.cpu()})
        own = counts > 0  # before fusion a client knows its own prototypes, and the global ones of other classes
        table, known = (client.received.tensors[key].to(means.device) for key in ("prototypes", "known"))
        predictor = NearestPrototype(model, torch.where(own[:, None], means.float(), table), known | own)
        return Update(State(prefixed("model", model.state_dict())), message, predictor, loss, steps)

    def objective(self, client: Client):
        prototypes, known = (client.received.tensors[key].to(self.setting.device) for key in ("prototypes", "known"))

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            features = model.features(batch.inputs)
            plain = cross_entropy(model.head(features), batch.labels, client.candidates)
            target = torch.where(known[batch.labels, None], prototypes[batch.labels], features.detach())
            return plain + self.params.weight * F.mse_loss(features, target)

        return loss

    @torch.no_grad()
    def prototypes(self, model: nn.Module, client: Client) -> tuple[Tensor, Tensor]:
        """C_ij (classes, features) in float64, 0 where there is no sample, and n_ij (classes,) in int64."""
        model.eval()
        classes, _ = self.table
        total = torch.zeros(self.table, dtype=torch.float64, device=self.setting.device)
        for batch in client.data.batches(BATCH):
            total += F.one_hot(batch.labels, classes).double().T @ model.features(batch.inputs).double()
        counts = F.one_hot(client.data.labels, classes).sum(dim=0)
        return total / counts.clamp(min=1)[:, None], counts

    def predictor(self, kind: str, server: State, client: State, holder: int) -> nn.Module:
        model = self.setting.load(client.part("model"), holder)
        if kind == "head":
            return model
        prototypes, known = (server.tensors[key].to(self.setting.device) for key in ("prototypes", "known"))
        return NearestPrototype(model, prototypes, known)
