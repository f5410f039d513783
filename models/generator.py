"""A small generator of images."""

from __future__ import annotations

import math

from torch import Tensor, nn


class ImageGenerator(nn.Module):
    """Noise (batch, noise) -> images (batch, channels, height, width) in [-1, 1], for images of 4 to 64 pixels.

    A linear layer to 2 * `width` maps of a quarter of the image's height and width, twice doubled (nearest neighbour),
    each time with a 3x3 convolution, batch normalisation and LeakyReLU, and a last convolution to the image. Sides that
    are not multiples of 4 are made a little larger and cut. tanh at the end, since the networks' inputs are in [-1, 1].

    Source: the generator of TARGET's authors (github.com/zj-jayzhang/Federated-Class-Continual-Learning), which has
    width 64 and ends in a sigmoid
    """

    def __init__(self, shape: tuple[int, int, int], noise: int, width: int) -> None:
        super().__init__()
        channels, *sides = shape
        start = [math.ceil(side / 4) for side in sides]
        self.shape = shape
        self.noise = noise
        self.grow = nn.Sequential(
            nn.Linear(noise, 2 * width * math.prod(start)),
            nn.Unflatten(1, (2 * width, *start)),
            nn.BatchNorm2d(2 * width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, channels, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, noise: Tensor) -> Tensor:
        _, height, width = self.shape
        return self.grow(noise)[..., :height, :width].contiguous()
