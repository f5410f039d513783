"""A foundation model with a small trainable part, and what a client decides with it."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from randomness import generator

from .adapter import Adapter
from .foundation import Foundation
from .initial import initialise
from .registry import FAR

BEHIND = 1000.0  # by which log p of a class that the client never met is lowered, more than any log p of ours
Part = Literal["head", "adapter", "lora"]


class Adapted(nn.Module):
    """F with its trainable part psi: a classifier over the stream's classes, and an adapter or LoRA before it.

    F itself takes no gradients and is shared, unless LoRA changes its layers: then psi works on a copy.

    Args:
        foundation: F, frozen.
        classes: of the stream.
        part: `head` (the classifier alone), `adapter` (on the features) or `lora` (in the backbone's layers).
        rank: units of the adapter's bottleneck, rank of LoRA's matrices.
        seed: of psi's initial values.
    """

    def __init__(self, foundation: Foundation, classes: int, part: Part, rank: int, seed: int) -> None:
        super().__init__()
        width, device = foundation.width, next(foundation.parameters()).device
        self.options = {"part": part, "rank": rank, "seed": seed}
        self.foundation = with_lora(foundation, rank, seed) if part == "lora" else foundation
        self.frozen = part != "lora"  # F's features of a sample never change
        with torch.device("meta"):
            self.adapter = Adapter(width, rank) if part == "adapter" else nn.Identity()
            self.head = nn.Linear(width, classes)
        draw = generator(seed, "psi")
        self.adapter, self.head = (initialise(each, draw).to(device) for each in (self.adapter, self.head))
        self.eval()

    def psi(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return {name: each for name, each in self.named_parameters() if each.requires_grad}

    def load_psi(self, tensors: dict[str, Tensor]) -> Adapted:
        """psi takes the values of `tensors`."""
        own = self.psi()
        if own.keys() != tensors.keys():
            raise ValueError(f"not this psi: {', '.join(sorted(own.keys() ^ tensors.keys()))}")
        with torch.no_grad():
            for name, each in own.items():
                each.copy_(tensors[name])
        return self

    def features(self, inputs: Tensor) -> Tensor:
        return self.adapter(self.foundation.features(inputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))

    def from_features(self, features: Tensor) -> Tensor:
        """Logits from F's features, where these never change."""
        return self.head(self.adapter(features))

    def general(self) -> dict[str, nn.Module]:
        """Inputs -> logits of each general task, by F's own heads on the adapted features."""
        return {task: nn.Sequential(Features(self), head) for task, head in self.foundation.general.items()}


class Features(nn.Module):
    """The features of a network as a module of its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network.features(inputs)


def with_lora(foundation: Foundation, rank: int, seed: int) -> Foundation:
    """A copy whose attention layers have a trainable low-rank part each: W + B A, B = 0 at the start.

    Through PEFT. A is drawn again from a generator of ours, since PEFT draws from torch's global one.

    Source: Hu et al., LoRA, ICLR 2022
    """
    from peft import LoraConfig, inject_adapter_in_model  # seconds

    from .released_weights import Undrawn

    copied = copy.deepcopy(foundation)
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(copied.backbone.adaptable))
    with Undrawn():
        inject_adapter_in_model(config, copied.backbone)
    draw = generator(seed, "psi", "lora")
    with torch.no_grad():
        for name, each in sorted(copied.named_parameters()):
            each.requires_grad_("lora_" in name)
            if "lora_A" in name:
                bound = each.shape[1] ** -0.5
                each.copy_(torch.empty(each.shape).uniform_(-bound, bound, generator=draw))
    return copied.eval()


class ClassMeans(nn.Module):
    """F with the nearest class mean as classifier: logit_k = cos( h(x) - c, m_k - c ) / temperature.

    m_k is the mean feature of class k, c the mean of all m_k: features of a pre-trained network share a large common
    part that would make all cosines alike. [ours] The logit of a class without a mean is far below all others.

    Args:
        foundation: F; None where only `from_features` is used.
        means: (classes, width), rows of unknown classes are not looked at.
        known: (classes,) bool.
    """

    def __init__(self, foundation: Foundation | None, means: Tensor, known: Tensor, temperature: float) -> None:
        super().__init__()
        self.foundation = foundation
        self.temperature = temperature
        self.register_buffer("means", means)
        self.register_buffer("known", known)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.from_features(self.foundation.features(inputs))

    def from_features(self, features: Tensor) -> Tensor:
        centre = self.means[self.known].mean(dim=0)
        own, means = (nn.functional.normalize(each - centre, dim=1) for each in (features, self.means))
        return torch.where(self.known, own @ means.T / self.temperature, FAR)


class Collaborative(nn.Module):
    """Small model and foundation model together: the surer of the two has the greater say, sample by sample.

        p = lambda p_theta + (1 - lambda) p_F,    lambda = H(p_F) / ( H(p_F) + H(p_theta) )               [ours]

    Probabilities and entropies H are over `own`, the classes that the client has met; all other classes come after
    these, in the small model's order. Gives log p.

    Args:
        small, foundation: inputs -> logits (batch, classes).
        own: (classes,) bool; at least one.
    """

    def __init__(self, small: nn.Module, foundation: nn.Module, own: Tensor) -> None:
        super().__init__()
        self.small, self.foundation = small, foundation
        self.register_buffer("own", own)

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.small(inputs)
        p, q = (each[:, self.own].softmax(dim=1) for each in (logits, self.foundation(inputs)))
        h_p, h_q = (-(each * each.clamp(min=1e-12).log()).sum(dim=1, keepdim=True) for each in (p, q))
        share = (h_q + 1e-12) / (h_q + h_p + 2e-12)  # both certain: half and half
        mixed = logits.log_softmax(dim=1) - BEHIND
        mixed[:, self.own] = (share * p + (1 - share) * q).clamp(min=1e-30).log()
        return mixed
