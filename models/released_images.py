"""What every released image network needs around it to be a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from errors import InputError

from .foundation import Backbone, example_images


class ImageBackbone(Backbone):
    """A released image network and what is done to images before it.

    Images (batch, channels, height, width) in [-1, 1] are scaled bilinearly with antialiasing to `size` x `size`
    pixels, whole, none cut off [ours: released pipelines crop photographs; streams of ours have their object in
    the whole image]; grey is repeated to the network's channels; [0, 1] is normalised with `mean` and `std`.

    Args:
        network: prepared images -> features (batch, width).
        structure: plain values: channels, size (pixels), mean and std (in [0, 1], one a channel), and whatever the
            network is built again from.
        adaptable: names in `network` of the linear layers that LoRA may adapt.
    """

    modality = "image"

    def __init__(self, network: nn.Module, structure: Mapping[str, Any], adaptable: Sequence[str]) -> None:
        super().__init__()
        self.structure, self.network = dict(structure), network
        self.adaptable = tuple(f"network.{name}" for name in adaptable)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(structure[name]).view(-1, 1, 1), persistent=False)
        self.eval()

    def prepared(self, images: Tensor) -> Tensor:
        """Images of the stream -> what the network reads, (batch, channels, size, size)."""
        size = (self.structure["size"],) * 2
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        if images.shape[1] == 1:
            images = images.expand(-1, self.structure["channels"], -1, -1)
        return ((images + 1) / 2 - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        return self.pooled(self.prepared(images))

    def pooled(self, images: Tensor) -> Tensor:
        """Prepared images -> features (batch, width)."""
        return self.network(images)

    def example(self) -> Tensor:
        size = self.structure["size"]
        return example_images((self.structure["channels"], size, size), self.mean.device)

    def description(self) -> dict[str, Any]:
        return {**self.structure, "width": self.width, "adaptable": list(self.adaptable)}


def whole_patches(size: int, patch: int | Sequence[int]) -> None:
    """Raises InputError if an image of size x size pixels is not divided by patches: the rest would be cut off."""
    patch = max(patch) if isinstance(patch, Sequence) else patch
    if size % patch:
        raise InputError(f"foundation.size must be a multiple of the network's patches of {patch} pixels (got {size})")
