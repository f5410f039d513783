"""Multi-layer perceptron."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from errors import InputError

from .registry import Classifier, register


@register("mlp")
class MLP(Classifier):
    """`depth` hidden layers of `width` units with ReLU: the 2NN of McMahan et al. 2017 with width 200, depth 2."""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 200, depth: int = 2) -> None:
        super().__init__()
        if width < 1 or depth < 1:
            raise InputError(f"model.width and model.depth must be at least 1 (got {width} and {depth})")
        sizes = [math.prod(shape), *[width] * depth]
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.body = nn.Sequential(nn.Flatten(), *layers)
        self.width = width
        self.head = nn.Linear(width, classes)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)
