"""Classification by several networks, each for classes of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MostConfident(nn.Module):
    """The networks' log-probabilities over their own classes, so that the most confident network decides.

        logit_k(x) = max over networks n with k in C_n of ( log softmax of f_n(x) over C_n )_k

    Among the classes of one network alone this is that network's decision, whatever the others say. Who is most
    confident is the usual guess of whose sample it is where that is not known (the baseline of Hendrycks and Gimpel
    2017; for networks of several tasks Wortsman et al. 2020 choose by entropy). Classes that no network has are left
    to the last one, as a group of their own.

    Args:
        networks: inputs -> logits (batch, classes), at least one.
        known: (networks, classes) bool, C_n.
    """

    def __init__(self, networks: Sequence[nn.Module], known: Tensor) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.register_buffer("known", known)

    def forward(self, inputs: Tensor) -> Tensor:
        logits = [network(inputs) for network in self.networks]
        groups = [*zip(logits, self.known, strict=True), (logits[-1], ~self.known.any(dim=0))]
        highest = torch.full_like(logits[0], -torch.inf)
        for own, classes in groups:
            confidence = own[:, classes].log_softmax(dim=1)
            highest[:, classes] = torch.maximum(highest[:, classes], confidence)
        return highest
