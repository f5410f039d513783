"""A foundation model with a small trainable part, and what a client decides with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from randomness import generator

from .adapter import Adapter
from .blocks import stack
from .expansion import AddedBlock, added_blocks
from .foundation import Foundation
from .initial import initialise
from .parts import PARTS
from .registry import FAR

BEHIND = 1000.0  # by which log p of a class that the client never met is lowered, more than any log p of ours
Part = Literal["head", "adapter", "lora"]  # those of methods that learn from F's features


class Adapted(nn.Module):
    """F with its trainable part psi: a classifier over the stream's classes, and something in or on F.

    F's own tensors take no gradients and are shared, see `models.parts`.

    Args:
        foundation: F, frozen.
        classes: of the stream.
        part: `adapter` (on the features), or one of `parts.PARTS`; `head` is the classifier alone.
        seed: of psi's initial values.
        options: the part's own: rank of LoRA's matrices or units of an adapter, added blocks and where they stand.
    """

    def __init__(self, foundation: Foundation, classes: int, part: str, seed: int, **options: Any) -> None:
        super().__init__()
        width, device = foundation.width, next(foundation.parameters()).device
        on_features = part == "adapter"
        self.foundation = foundation if on_features else PARTS[part](foundation, seed, **options)
        self.frozen = on_features or part == "head"  # F's features of a sample never change
        with torch.device("meta"):
            self.adapter = Adapter(width, options["rank"]) if on_features else nn.Identity()
            self.head = nn.Linear(width, classes)
        draw = generator(seed, "psi")
        self.adapter, self.head = (initialise(each, draw).to(device) for each in (self.adapter, self.head))
        if part == "blocks":  # what was found out need not be found out again
            options["gated"] = any(each.gate is not None for each in added_blocks(self.foundation))
        self.options = {"part": part, "seed": seed, **options}
        self.eval()

    def psi(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return {name: each for name, each in self.named_parameters() if each.requires_grad}

    def load_psi(self, tensors: Mapping[str, Tensor]) -> Adapted:
        """psi takes the values of `tensors`."""
        own = self.psi()
        if own.keys() != tensors.keys():
            raise ValueError(f"not this psi: {', '.join(sorted(own.keys() ^ tensors.keys()))}")
        with torch.no_grad():
            for name, each in own.items():
                each.copy_(tensors[name])
        return self

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """F's transformer blocks with what was added to them, from the bottom, by name.

        Raises:
            InputError: F is no transformer.
        """
        row = stack(self.foundation.backbone)
        return {f"foundation.backbone.{name}": each for name, each in zip(row.names, row.blocks, strict=True)}

    @property
    def units(self) -> dict[str, nn.Module]:
        """The blocks that learn or not, each by itself, from the bottom: the added ones, or the top ones in place."""
        blocks = self.blocks
        if self.options["part"] == "top_blocks":
            return dict(list(blocks.items())[-self.options["added"] :])
        return {name: each for name, each in blocks.items() if isinstance(each, AddedBlock)}

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
