"""The four-block convolutional network of few-shot learning."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from .maps import Halve, Norm, channels_last, convolution
from .registry import Classifier, register


@register("cnn4")
class CNN4(Classifier):
    """Four blocks of a 3x3 convolution with `width` channels, normalisation, ReLU and 2x2 max pooling ("Conv-4").

    Pooled only while a map is larger than one pixel, so that 8 x 8 images go in as they are; the last map is flattened
    as in the paper: `width` features for images below 32 pixels, 4 * `width` at 32, 16 * `width` at 64.

    norm: `batch` as in the paper, or `group` (default), whose statistics no averaging of clients can mix up.

    Source: Vinyals et al. 2016, arXiv 1606.04080, section 4.1
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        width: Annotated[int, Field(ge=4)] = 64,  # fewer are one group of norm "group": see maps.normalisation
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        channels, *sides = shape
        blocks = []
        for inputs in (channels, width, width, width):
            blocks += [convolution(inputs, width, norm), Halve()]
            sides = [max(1, side // 2) for side in sides]
        self.body = nn.Sequential(*blocks, nn.Flatten())
        self.width = width * sides[0] * sides[1]
        self.head = nn.Linear(self.width, classes)

    def pooled(self, images: Tensor) -> Tensor:
        return self.body(channels_last(images))
