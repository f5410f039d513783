"""Classification by the nearest prototype instead of by a head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .registry import FAR, Classifier


class NearestPrototype(nn.Module):
    """logit_k = -||f(x) - p_k||^2, so that the largest logit is the nearest prototype.

    Args:
        network: gives the features f(x), (batch, width).
        prototypes: (classes, width); rows of classes that have none are not looked at.
        known: (classes,) bool, which classes have a prototype.
        normalise: features and prototypes are scaled to length 1 first (iCaRL, Rebuffi et al. 2017, section 2.1).
    """

    def __init__(self, network: Classifier, prototypes: Tensor, known: Tensor, normalise: bool = False) -> None:
        super().__init__()
        self.network = network
        self.normalise = normalise
        self.register_buffer("prototypes", prototypes)
        self.register_buffer("known", known)

    def forward(self, inputs: Tensor) -> Tensor:
        features, prototypes = self.network.features(inputs), self.prototypes
        if self.normalise:
            features, prototypes = F.normalize(features, dim=1), F.normalize(prototypes, dim=1)
        distances = (features[:, None, :] - prototypes[None]).square().sum(dim=2)
        return torch.where(self.known, -distances, torch.full_like(distances, FAR))
