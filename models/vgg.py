"""VGG-11 for small images."""

from __future__ import annotations

from torch import Tensor, nn

from .maps import Halve, Norm, average, convolution
from .registry import Classifier, PositiveInt, register

# Configuration A: channels in units of `width` (64 in the paper), "M" a 2x2 max pooling.
CONFIGURATION_A = (1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8, "M")


@register("vgg11")
class VGG11(Classifier):
    """Eight 3x3 convolutions of `width` to 8 * `width` channels, normalised, with five 2x2 max poolings.

    For small images [field]: pooled only while a map is larger than one pixel, and the three layers of 4096 units that
    follow in the paper are the mean over the last map (one pixel for images below 64) and the head.

    Source: Simonyan & Zisserman 2015, arXiv 1409.1556, table 1, column A
    """

    def __init__(
        self, shape: tuple[int, int, int], classes: int, width: PositiveInt = 64, norm: Norm = "group"
    ) -> None:
        super().__init__()
        layers, inputs = [], shape[0]
        for entry in CONFIGURATION_A:
            if entry == "M":
                layers.append(Halve())
            else:
                layers.append(convolution(inputs, entry * width, norm))
                inputs = entry * width
        self.body = nn.Sequential(*layers)
        self.width = inputs
        self.head = nn.Linear(inputs, classes)

    def pooled(self, images: Tensor) -> Tensor:
        return average(self.body(images))
