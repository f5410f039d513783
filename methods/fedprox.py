"""FedAvg with a proximal term."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from .base import register
from .fedavg import FedAvg
from .training import Batch, Client


@register("fedprox", multitask=True)
class FedProx(FedAvg):
    """FedAvg whose clients stay near the model they received.

        min_w  F_i(w) + mu/2 * ||w - w_server||^2              Li et al., MLSys 2020, section 3.2

    The norm runs over the parameters; running statistics are no parameters and move freely [field]. The paper's other
    half, that slow clients may stop early, has nothing to act on here: every client does its local epochs. With mu = 0
    this is FedAvg to the last bit.
    """

    class Params(FedAvg.Params):
        mu: float = Field(0.01, ge=0, description="weight of the proximal term; 0 is fedavg")

    def objective(self, client: Client):
        plain, mu = super().objective(client), self.params.mu
        if mu == 0:
            return plain
        received = {name: w.to(self.setting.device) for name, w in client.received.part("model").items()}

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            drift = sum((w - received[name]).square().sum() for name, w in model.named_parameters())
            return plain(model, batch) + mu / 2 * drift

        return loss
