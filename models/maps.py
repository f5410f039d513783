"""What the convolutional networks do with their maps (batch, channels, height, width)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["group", "batch"]


def normalisation(kind: Norm, channels: int, smallest: int = 1) -> nn.Module:
    """GroupNorm with up to 8 groups, or BatchNorm. GroupNorm keeps no running statistics that clients would mix.

    Args:
        kind: `group` or `batch`.
        channels: of the maps.
        smallest: channels that a group has at least, if there are as many. On a map of one pixel a group of one
            channel is one number, which normalisation makes zero whatever the image was.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    groups = math.gcd(channels, 8)
    while groups > 1 and channels // groups < smallest:
        groups //= 2
    return nn.GroupNorm(groups, channels)


def channels_last(images: Tensor) -> Tensor:
    """The same images with the channels of a pixel side by side in memory, and so all maps computed from them.

    On a CPU core a step of `cnn` takes 0.6 of the time, of `cnn4`, `slim_resnet18` and `mobilenet_v2` 0.7 to 0.8, of
    `resnet18` 1.0. With `vgg11` it takes 1.2, so that one leaves images as they come. Sums change in their last bits.
    """
    return images.contiguous(memory_format=torch.channels_last)


def convolution(inputs: int, outputs: int, norm: Norm) -> nn.Sequential:
    """A 3x3 convolution, normalised, with ReLU; (height, width) stays. No bias: the normalisation has one."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, normalisation(norm, outputs, smallest=4), nn.ReLU())


class Halve(nn.Module):
    """2x2 max pooling that leaves a side of one pixel as it is: (..., 7, 1) -> (..., 3, 1)."""

    def forward(self, maps: Tensor) -> Tensor:
        window = [min(side, 2) for side in maps.shape[-2:]]
        return F.max_pool2d(maps, window) if max(window) > 1 else maps


def average(maps: Tensor) -> Tensor:
    """(batch, channels, height, width) -> (batch, channels).

    A plain mean: the gradient of PyTorch's adaptive pooling is summed in no fixed order on CUDA.
    """
    return maps.float().mean(dim=(2, 3))
