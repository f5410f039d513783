"""What belongs to a pair of modality and task is kept apart from what belongs to others."""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.multimodal import Fused

from .base import register
from .fedavg_ft import FedAvgFT
from .objectives import losses, total
from .training import Batch, Client


@register("disentafl", multitask=True)
class DisentAFL(FedAvgFT):
    """DisentAFL: latents of different (modality, task) pairs are orthogonal to each other.

        L_i = sum_o share_o L_o + weight * mean over pairs a != b of cos( z_a, z_b )^2

    z_a is the batch's mean output of the private path of the pair a of modality and task. After DisentAFL (Chen and
    Zhang, 2024) as TAP's authors compare with it: paths, and orthogonal latents with weight 0.5 [code]; the squared
    cosine of means, and all on the network that TAP has too, are ours [ours]. A client with one pair has nothing to
    disentangle. `post_training` adds the local fine-tuning of `fedavg_ft` after all rounds; without it `personal` is
    the part of the server's model that the client's tasks use.
    """

    class Params(FedAvgFT.Params):
        orthogonality: float = Field(0.5, ge=0, description="weight of the orthogonality of latents; 0 is none")
        post_training: bool = Field(True, description="fine-tune at every client after all rounds")

    def __init__(self, params, setting) -> None:
        super().__init__(params, setting)
        self.finishes = params.post_training

    def objective(self, client: Client):
        def loss(model: nn.Module, batch: Batch) -> Tensor:
            seen: dict[str, Fused] = {}
            plain = total(losses(model, batch, client.candidates, seen))
            latents = [each.mean(dim=0) for fused in seen.values() for each in fused.latents.values()]
            if len(latents) < 2 or not self.params.orthogonality:
                return plain
            overlaps = [F.cosine_similarity(a, b, dim=0).square() for a, b in combinations(latents, 2)]
            return plain + self.params.orthogonality * torch.stack(overlaps).mean()

        return loss
