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


class Averaged(nn.Module):
    """The mean of the networks' predictions, each over its own classes: an ensemble of experts. [field]

        p_k(x) = 1/N sum over networks n with k in C_n of softmax( f_n(x) over C_n )_k

    Args and result as in `MostConfident`; the result is log p.
    """

    def __init__(self, networks: Sequence[nn.Module], known: Tensor) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.register_buffer("known", known)

    def forward(self, inputs: Tensor) -> Tensor:
        return probabilities(self, inputs).mean(dim=0).clamp(min=torch.finfo(torch.float32).tiny).log()


class LeastEntropy(Averaged):
    """The network whose prediction has the least entropy decides alone. [field: Wortsman et al. 2020, of several tasks]

        n*(x) = argmin_n H( p_n ) / log |C_n|,   p = p_{n*}

    The entropy is a share of the greatest possible one, so that few classes are no advantage [ours]; a network that
    knows one class only has none to say anything by, and counts as quite uncertain.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        chances = probabilities(self, inputs)
        entropy = torch.special.entr(chances).sum(dim=2)  # (networks, batch)
        most = self.known.sum(dim=1).float().log()[:, None]
        share = torch.where(most > 0, entropy / most.clamp(min=1e-12), torch.ones_like(entropy))
        surest = share.argmin(dim=0)
        own = chances[surest, torch.arange(len(inputs), device=inputs.device)]
        rest = 1e-6 * chances.mean(dim=0)  # among classes that the surest does not know, what the others say
        return (own + rest).clamp(min=torch.finfo(torch.float32).tiny).log()


def probabilities(model: Averaged, inputs: Tensor) -> Tensor:
    """(networks, batch, classes): each network's soft-max over its own classes, 0 for the others."""
    found = []
    for network, classes in zip(model.networks, model.known, strict=True):
        logits = network(inputs).float().masked_fill(~classes, -torch.inf)
        found.append(logits.softmax(dim=1))
    return torch.stack(found)
