"""Weights as a shared base, masked by units, plus sparse parts: the decomposition of FedWeIT.

All decomposed weights of a network are written as one vector, in the order of their names; `Layout` knows where each
begins. A unit is an output of a layer: a row of a linear layer, a filter of a convolution, the vector of a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.registry import Classifier


@dataclass(frozen=True)
class Layout:
    """Where the decomposed weights lie in a vector."""

    shapes: Mapping[str, torch.Size]  # of weights, (units, ...)

    @classmethod
    def of(cls, network: Classifier) -> Layout:
        """All weights of two or more dimensions but the head's: not its biases and normalisation."""
        weights = {name: each.shape for name, each in network.named_parameters() if each.dim() > 1}
        return cls({name: shape for name, shape in weights.items() if not name.startswith("head.")})

    @property
    def units(self) -> list[int]:
        """Units of each weight."""
        return [shape[0] for shape in self.shapes.values()]

    @property
    def lengths(self) -> list[int]:
        """Numbers in each unit, by weight."""
        return [shape[1:].numel() for shape in self.shapes.values()]

    @property
    def sizes(self) -> list[int]:
        return [shape.numel() for shape in self.shapes.values()]

    @property
    def numbers(self) -> int:
        """Length of the vector."""
        return sum(self.sizes)

    def rest(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What of a state dict is not decomposed."""
        return {name: tensor for name, tensor in tensors.items() if name not in self.shapes}

    def rows(self, vectors: Iterable[Tensor]) -> Tensor:
        """Vectors one below the other, (count, numbers); of none, (0, numbers)."""
        return torch.cat([torch.empty(0, self.numbers), *(vector[None] for vector in vectors)])

    def vector(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The weights in a state dict -> (numbers,)."""
        return torch.cat([tensors[name].flatten() for name in self.shapes])

    def tensors(self, vector: Tensor) -> dict[str, Tensor]:
        """The inverse of `vector`."""
        parts = zip(self.shapes.items(), vector.split(self.sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    def spread(self, of_units: Tensor) -> Tensor:
        """(units,) -> (numbers,): each number gets its unit's entry."""
        parts = zip(of_units.split(self.units), self.lengths, strict=True)
        return torch.cat([part[:, None].expand(-1, length).reshape(-1) for part, length in parts])

    def combined(self, attention: Tensor, vectors: Tensor) -> Tensor:
        """Vectors (count, numbers), each weighted by its attention (count, weights) -> their sum (numbers,)."""
        parts = vectors.split(self.sizes, dim=1)
        return torch.cat([attention[:, place] @ part for place, part in enumerate(parts)])


class Decomposed(nn.Module):
    """A network with the weights base * mask + adaptive + fixed + sum_j attention_j knowledge_j.

    Args:
        network: its other parameters (biases, normalisation, the head) are trained as they are.
        base, adaptive, fixed: (numbers,).
        mask: (units,).
        knowledge: (count, numbers), sparse parts of others; their attention, one number a weight, starts from 0.
    """

    def __init__(
        self,
        layout: Layout,
        network: nn.Module,
        base: Tensor,
        mask: Tensor,
        adaptive: Tensor,
        fixed: Tensor,
        knowledge: Tensor,
    ) -> None:
        super().__init__()
        self.layout, self.network = layout, network
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name not in layout.shapes)
        self.base, self.mask, self.adaptive = (nn.Parameter(each.clone()) for each in (base, mask, adaptive))
        self.attention = nn.Parameter(base.new_zeros(len(knowledge), len(layout.shapes)))
        self.fixed, self.knowledge = fixed, knowledge

    def transferred(self) -> Tensor:
        return self.fixed + self.layout.combined(self.attention, self.knowledge)

    def weights(self) -> dict[str, Tensor]:
        whole = self.base * self.layout.spread(self.mask) + self.adaptive + self.transferred()
        return self.layout.tensors(whole)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.func.functional_call(self.network, self.weights(), (inputs,))
