"""Residual networks for small images."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from errors import InputError

from .registry import Classifier, PositiveInt, register


def normalisation(kind: str, channels: int) -> nn.Module:
    """GroupNorm with up to 8 groups, or BatchNorm. GroupNorm keeps no running statistics that clients would mix."""
    if kind == "group":
        return nn.GroupNorm(math.gcd(channels, 8), channels)
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    raise InputError(f"model.norm: expected 'group' or 'batch' (got '{kind}')")


class BasicBlock(nn.Module):
    """x + conv(conv(x)), each convolution 3x3 and normalised; a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = normalisation(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = normalisation(norm, outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, normalisation(norm, outputs))

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(maps)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(maps))


@register("slim_resnet18")
class SlimResNet18(Classifier):
    """ResNet-18 with a 3x3 stem and `width` to `8 * width` channels.

    width 20 is the slim ResNet-18 of GEM (Lopez-Paz and Ranzato 2017), 1.1 M parameters; width 64 the full one.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        width: PositiveInt = 20,
        norm: Literal["group", "batch"] = "group",
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(shape[0], width, 3, padding=1, bias=False), normalisation(norm, width))
        stages, inputs = [], width
        for index in range(4):
            outputs, stride = width * 2**index, 1 if index == 0 else 2
            stages.append(
                nn.Sequential(BasicBlock(inputs, outputs, stride, norm), BasicBlock(outputs, outputs, 1, norm))
            )
            inputs = outputs
        self.stages = nn.ModuleList(stages)
        self.width = inputs
        self.head = nn.Linear(inputs, classes)

    def features(self, images: Tensor) -> Tensor:
        maps = F.relu(self.stem(images))
        for stage in self.stages:
            maps = stage(maps)
        return maps.mean(dim=(2, 3))
