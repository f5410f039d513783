"""A small trainable part on the features of a network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Zero(nn.Linear):
    """A linear layer whose initial values are 0, see `initial.initialise`."""


class Adapter(nn.Module):
    """h + W_2 gelu(W_1 h), with W_2 = 0 at the start: then it is the identity. [field: Houlsby et al., ICML 2019]"""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = Zero(bottleneck, width)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.up(F.gelu(self.down(features)))
