"""MobileNetV2 for small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .maps import Norm, average, channels_last, normalisation
from .registry import Classifier, PositiveInt, register

# Table 2 of the paper: expansion t, output channels c, repeats n, stride s of the first repeat.
# The stem and the stage of 24 channels have stride 1 here and 2 in the paper: 32 x 32 pixels end as 4 x 4, not 1 x 1.
STAGES = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
STEM, LAST = 32, 1280


def scaled(channels: int, width: int) -> int:
    """`channels` times the multiplier `width` / 32, as a multiple of 8 that is not more than a tenth below. [code]"""
    wanted = channels * width / STEM
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def convolution(inputs: int, outputs: int, norm: Norm, kernel: int = 1, stride: int = 1, groups: int = 1) -> list:
    """A convolution without bias, and its normalisation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, normalisation(norm, outputs, smallest=4)]


class InvertedResidual(nn.Module):
    """Expand (1x1), convolve each channel for itself (3x3), project without activation (1x1): section 3, table 1.

    The input is added where the shape stays.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, norm: Norm) -> None:
        super().__init__()
        inner = inputs * expansion
        expand = [*convolution(inputs, inner, norm), nn.ReLU6()] if expansion > 1 else []
        depthwise = [*convolution(inner, inner, norm, kernel=3, stride=stride, groups=inner), nn.ReLU6()]
        self.body = nn.Sequential(*expand, *depthwise, *convolution(inner, outputs, norm))
        self.same = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.body(maps) if self.same else self.body(maps)


@register("mobilenet_v2")
class MobileNetV2(Classifier):
    """Seventeen inverted residuals with linear bottlenecks; the strides of the common CIFAR variant [field].

    `width` is the number of the stem's channels: the paper's width multiplier times 32, so 16 is MobileNetV2 0.5. As in
    the paper the last convolution keeps its 1280 channels when the others become fewer. No dropout.

    Source: Sandler et al. 2018, arXiv 1801.04381, table 2
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, width: PositiveInt = 32, norm: Norm = "group"
    ) -> None:
        super().__init__()
        inputs = scaled(STEM, width)
        self.stem = nn.Sequential(*convolution(shape[0], inputs, norm, kernel=3))
        blocks = []
        for expansion, channels, repeats, stride in STAGES:
            outputs = scaled(channels, width)
            for repeat in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, 1 if repeat else stride, expansion, norm))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.width = scaled(LAST, max(width, STEM))
        self.last = nn.Sequential(*convolution(inputs, self.width, norm))
        self.head = nn.Linear(self.width, classes)

    def pooled(self, images: Tensor) -> Tensor:
        maps = self.blocks(F.relu6(self.stem(channels_last(images))))
        return average(F.relu6(self.last(maps)))
