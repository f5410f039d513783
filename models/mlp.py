"""Multi-layer perceptron."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from .registry import Classifier, PositiveInt, register


@register("mlp")
class MLP(Classifier):
    """`depth` hidden layers of `width` units with ReLU: the 2NN of the paper with width 200, depth 2.

    Source: McMahan et al. 2017, arXiv 1602.05629, section 3
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, width: PositiveInt = 200, depth: PositiveInt = 2
    ) -> None:
        super().__init__()
        sizes = [math.prod(shape), *[width] * depth]
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.body = nn.Sequential(nn.Flatten(), *layers)
        self.width = width
        self.head = nn.Linear(width, classes)

    def pooled(self, images: Tensor) -> Tensor:
        return self.body(images)
