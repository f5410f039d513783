"""Residual networks for small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .maps import Norm, average, channels_last, normalisation
from .registry import Classifier, PositiveInt, register


class BasicBlock(nn.Module):
    """x + conv(conv(x)), each convolution 3x3 and normalised; a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
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
    """ResNet-18 with a 3x3 stem and `width` to `8 * width` channels: with width 20 GEM's, 1.1 M parameters.

    Source: He et al. 2016, arXiv 1512.03385, table 1; width of Lopez-Paz & Ranzato 2017, arXiv 1706.08840, section 5
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, width: PositiveInt = 20, norm: Norm = "group"
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

    def pooled(self, images: Tensor) -> Tensor:
        maps = F.relu(self.stem(channels_last(images)))
        for stage in self.stages:
            maps = stage(maps)
        return average(maps)


@register("resnet18")
class ResNet18(SlimResNet18):
    """The full ResNet-18: 64 to 512 channels; a 3x3 stem without pooling, as usual for small images [field].

    Source: He et al. 2016, arXiv 1512.03385, table 1
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, width: PositiveInt = 64, norm: Norm = "group"
    ) -> None:
        super().__init__(shape, classes, width, norm)
