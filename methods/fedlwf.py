"""Learning without forgetting, federated."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from .base import register
from .fedavg import FedAvg
from .teacher import Taught
from .training import Batch, Client, cross_entropy, distillation


@register("fedlwf")
class FedLwF(Taught):
    """FedAvg whose clients stay near what the global model predicted before this experience.

        L = CE( theta(x) on C^t, y ) + weight * tau^2 KL( p_{theta^{t-1}} on C^{<t} || p_theta on C^{<t} )

    theta^{t-1} is the global model at the end of the previous experience, the teacher. Li and Hoiem, ECCV 2016,
    section 3 [paper: the two terms]; tau^2 as in Hinton et al. 2015 and the federation as in the FCL literature's
    baseline [field]. The paper has one head per task; with the one head of class-incremental streams its two terms
    run over the new and over the old classes of that head [ours]. In the first experience this is FedAvg to the last
    bit.

    The teacher goes down once per client and experience: see `Taught`.
    """

    class Params(FedAvg.Params):
        temperature: float = Field(2.0, gt=0, description="tau, softens both predictions")
        weight: float = Field(1.0, ge=0, description="weight of the distillation term; 0 is none")

    def objective(self, client: Client):
        if not client.known:
            return super().objective(client)
        teacher = self.setting.load(self.teacher(client)).eval()

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            logits = model(batch.inputs)
            with torch.no_grad():
                old = teacher(batch.inputs)
            drift = sum(distillation(logits, old, head, self.params.temperature) for head in client.old_heads)
            return cross_entropy(logits, batch.labels, client.classes) + self.params.weight * drift

        return loss
