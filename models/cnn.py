"""The small convolutional network of federated-learning papers."""

from __future__ import annotations

from torch import Tensor, nn

from errors import InputError

from .maps import channels_last
from .registry import Classifier, PositiveInt, register


@register("cnn")
class CNN(Classifier):
    """Two 3x3 convolutions with max pooling and one hidden layer, for images of 8 to 64 pixels.

    `width` and `2 * width` channels, features of `4 * width` numbers. The maps are pooled to at most 4x4 before the
    hidden layer, so that the parameter count does not grow with the image.

    Source: after McMahan et al. 2017, arXiv 1602.05629, section 3, with 3x3 convolutions
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, width: PositiveInt = 32) -> None:
        super().__init__()
        channels, height, width_px = shape
        if min(height, width_px) < 4:
            raise InputError(f"model.name: cnn needs images of at least 4 x 4 pixels (got {height} x {width_px})")
        map_size = (min(height // 4, 4), min(width_px // 4, 4))
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(map_size),
            nn.Flatten(),
            nn.Linear(2 * width * map_size[0] * map_size[1], 4 * width),
            nn.ReLU(),
        )
        self.width = 4 * width
        self.head = nn.Linear(self.width, classes)

    def pooled(self, images: Tensor) -> Tensor:
        return self.body(channels_last(images))
