"""Learning without forgetting, federated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from .base import Upload, register
from .fedavg import FedAvg
from .state import Message, Moment, State, prefixed
from .training import Batch, Client, Update, cross_entropy, distillation


@register("fedlwf")
class FedLwF(FedAvg):
    """FedAvg whose clients stay near what the global model predicted before this experience.

        L = CE( theta(x) on C^t, y ) + weight * tau^2 KL( p_{theta^{t-1}} on C^{<t} || p_theta on C^{<t} )

    theta^{t-1} is the global model at the end of the previous experience, the teacher. Li and Hoiem, ECCV 2016,
    section 3 [paper: the two terms]; tau^2 as in Hinton et al. 2015 and the federation as in the FCL literature's
    baseline [field]. The paper has one head per task; with the one head of class-incremental streams its two terms
    run over the new and over the old classes of that head [ours]. In the first experience this is FedAvg to the last
    bit.

    The teacher goes down once per client and experience: at round 0 it is the model itself, and a client that first
    takes part later receives it beside the model; the client keeps it until the next experience. [ours]
    """

    class Params(FedAvg.Params):
        temperature: float = Field(2.0, gt=0, description="tau, softens both predictions")
        weight: float = Field(1.0, ge=0, description="weight of the distillation term; 0 is none")

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        messages = dict(super().broadcast(server, clients, moment))
        if self.teaches(moment) and moment.round > 0:
            both = Message({**prefixed("model", server.part("model")), **prefixed("previous", server.part("previous"))})
            messages |= {client: both for client in clients if client not in server.values["holders"]}
        return messages

    def train(self, client: Client) -> Update:
        update = super().train(client)
        if not self.teaches(client.moment):
            return update
        kept = State(prefixed("previous", self.teacher(client)), {"experience": client.moment.experience})
        return Update(kept, update.message, update.model, update.loss, update.steps)

    def objective(self, client: Client):
        if not self.teaches(client.moment) or not client.known:
            return super().objective(client)
        teacher = self.setting.load(self.teacher(client)).eval()

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            logits = model(batch.inputs)
            with torch.no_grad():
                old = teacher(batch.inputs)
            drift = sum(distillation(logits, old, head, self.params.temperature) for head in client.old_heads)
            return cross_entropy(logits, batch.labels, client.classes) + self.params.weight * drift

        return loss

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        fused = super().fuse(job, server, uploads, moment)
        if not self.teaches(moment):
            return fused
        holders = sorted({*server.values["holders"], *(upload.client for upload in uploads)})
        return State(fused.tensors, {"holders": holders})

    def end_experience(self, server: State, experience: int) -> State:
        return State({**server.tensors, **prefixed("previous", server.part("model"))}, {"holders": []})

    def teaches(self, moment: Moment) -> bool:
        return moment.experience > 0

    @staticmethod
    def teacher(client: Client) -> dict[str, Tensor]:
        """theta^{t-1}: what was sent along, what was kept from an earlier round, or the received model itself."""
        if client.moment.round > 0:
            if sent := client.received.part("previous"):
                return sent
            if client.state.values.get("experience") == client.moment.experience:
                return client.state.part("previous")
        return client.received.part("model")
