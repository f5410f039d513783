"""Augmentation of images, batch by batch on tensors: crop, flip, cut-out.

Draws come from a CPU generator and are moved to the batch's device, so a GPU sees the same crops as a CPU.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from validation import Section


class Augmentation(Section):
    """The section `train.augmentation`: what is done to training images; nothing by default."""

    crop: int = Field(0, ge=0, description="pixels of zero padding on every side, of which a random crop is taken")
    flip: bool = Field(False, description="mirror every second image, drawn by lot, left to right")
    cutout: int = Field(0, ge=0, description="side in pixels of a square set to zero around a random place")

    @property
    def active(self) -> bool:
        return bool(self.crop or self.flip or self.cutout)

    def apply(self, images: Tensor, draw: torch.Generator) -> Tensor:
        """Augmented copies of images (batch, channels, height, width), float; zero is mid-grey in [-1, 1]."""
        if self.crop:
            images = _crop(images, self.crop, draw)
        if self.flip:
            heads = torch.rand(len(images), generator=draw) < 0.5
            images = torch.where(heads.to(images.device)[:, None, None, None], images.flip(-1), images)
        if self.cutout:
            images = _cutout(images, self.cutout, draw)
        return images


def _crop(images: Tensor, padding: int, draw: torch.Generator) -> Tensor:
    """Each image shifted by up to `padding` pixels both ways, zeros where nothing was. [field: He et al. 2016]"""
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, [padding] * 4)
    shifts = torch.randint(0, 2 * padding + 1, (2, count), generator=draw).to(images.device)
    rows = shifts[0, :, None] + torch.arange(height, device=images.device)
    columns = shifts[1, :, None] + torch.arange(width, device=images.device)
    which = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _cutout(images: Tensor, side: int, draw: torch.Generator) -> Tensor:
    """A square of `side` pixels is set to zero; its centre may lie anywhere. [DeVries and Taylor 2017]"""
    count, _, height, width = images.shape
    inside = []
    for length in (height, width):
        start = torch.randint(0, length, (count, 1), generator=draw).to(images.device) - side // 2
        place = torch.arange(length, device=images.device)
        inside.append((place >= start) & (place < start + side))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return images.masked_fill(hole, 0)
