"""Crops of one picture as a source of training images, drawn on the fly."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from errors import InputError
from validation import Section


class CropParameters(Section):
    """`methods.*.data.crops`: how a picture is cut up. After Asano, Rupprecht & Vedaldi, ICLR 2020. [field]"""

    smallest: float = Field(0.001, gt=0, le=1, description="area of the smallest crop, share of the picture's")
    largest: float = Field(0.25, gt=0, le=1, description="area of the largest crop, share of the picture's")
    rotation: float = Field(35.0, ge=0, le=180, description="largest angle by which a crop is turned, degrees")
    shear: float = Field(20.0, ge=0, le=45, description="largest shear, degrees")
    colour: float = Field(0.4, ge=0, lt=1, description="strength of the jitter of brightness, contrast and colours")


class Crops:
    """Random crops of one picture: resized, turned, sheared, mirrored, their colours changed.

    All crops of a batch are sampled at once: one bilinear look-up for each resolution of the picture. A crop is taken
    from the resolution that is nearest above its own, which is what keeps large crops from aliasing.

    Args:
        picture: (3, height, width) uint8.
        shape: of the images that are drawn: channels (1: the mean of the colours), height and width.
    """

    def __init__(
        self,
        picture: np.ndarray,
        shape: tuple[int, ...],
        parameters: CropParameters,
        device: torch.device | str = "cpu",
    ) -> None:
        self.shape, self.parameters, self.device = shape, parameters, device
        image = torch.from_numpy(picture).to(device).float().div(127.5).sub(1)[None]
        if shape[0] == 1:
            image = image.mean(dim=1, keepdim=True)
        elif shape[0] != 3:
            raise InputError(f"image: crops of a picture have 1 or 3 channels (the stream's images have {shape[0]})")
        self.levels = [image]
        while min(self.levels[-1].shape[2:]) >= 2 * max(shape[1:]):
            self.levels.append(F.avg_pool2d(self.levels[-1], 2))

    def draw(self, count: int, draw: torch.Generator) -> Tensor:
        """(count, *shape) float32 in [-1, 1]."""
        about, (channels, height, width) = self.parameters, self.shape
        number = torch.rand(9, count, generator=draw)
        sides = torch.tensor(self.levels[0].shape[2:], dtype=torch.float32)  # height and width of the picture, pixels
        least, most = math.log(min(about.smallest, about.largest)), math.log(max(about.smallest, about.largest))
        area = torch.exp(least + (most - least) * number[0]) * sides.prod()
        ratio = torch.exp(math.log(4 / 3) * (2 * number[1] - 1))  # width / height, 3/4 to 4/3 [field]
        side = (area * width / height).sqrt()
        extent = torch.stack([side / ratio.sqrt() * height / width, side * ratio.sqrt()])  # height, width; pixels
        extent = extent * (sides[:, None] / extent).amin(dim=0).clamp(max=1)  # not larger than the picture
        angle = math.radians(about.rotation) * (2 * number[2] - 1)
        slope = torch.tan(math.radians(about.shear) * (2 * number[3] - 1))
        mirrored = torch.where(number[4] < 0.5, -1.0, 1.0)
        middle = extent / 2 + (sides[:, None] - extent) * number[5:7]
        theta = self._affine(extent, angle, slope, mirrored, middle, sides)
        level = (extent.amin(dim=0) / min(height, width)).log2().floor().clamp(0, len(self.levels) - 1).long()
        images = torch.empty(count, channels, height, width, device=self.device)
        grid = F.affine_grid(theta, [count, channels, height, width], align_corners=False).to(self.device)
        for number_of, image in enumerate(self.levels):
            rows = (level == number_of).nonzero().flatten().to(self.device)
            if len(rows):  # the crops one below the other: the picture is not copied for each
                tall = grid[rows].reshape(1, len(rows) * height, width, 2)
                cut = F.grid_sample(image, tall, mode="bilinear", padding_mode="reflection", align_corners=False)
                images[rows] = cut.reshape(channels, len(rows), height, width).transpose(0, 1)
        return self._jitter(images, number[7:].to(self.device), draw)

    @staticmethod
    def _affine(extent, angle, slope, mirrored, middle, sides) -> Tensor:
        """(count, 2, 3): from a crop's coordinates to the picture's, both in [-1, 1]."""
        cos, sin = angle.cos(), angle.sin()
        high, wide = extent / 2  # half sides, pixels
        x_by_x, x_by_y = cos * wide * mirrored, (cos * slope - sin) * high
        y_by_x, y_by_y = sin * wide * mirrored, (sin * slope + cos) * high
        tall, broad = sides / 2
        rows = [
            x_by_x / broad,
            x_by_y / broad,
            middle[1] / broad - 1,
            y_by_x / tall,
            y_by_y / tall,
            middle[0] / tall - 1,
        ]
        return torch.stack(rows, dim=1).reshape(-1, 2, 3)

    def _jitter(self, images: Tensor, number: Tensor, draw: torch.Generator) -> Tensor:
        """Brightness and contrast of each image, and the strength of each colour."""
        strength = self.parameters.colour
        if not strength:
            return images.clamp_(-1, 1)
        brightness, contrast = (strength * (2 * each - 1).view(-1, 1, 1, 1) for each in number)
        colours = 1 + strength * (2 * torch.rand(len(images), images.shape[1], 1, 1, generator=draw) - 1) / 2
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        images = (images - mean) * (1 + contrast) + mean + brightness
        return ((images + 1) * colours.to(images.device) - 1).clamp_(-1, 1)
