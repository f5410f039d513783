"""Images on which models are consolidated: anything but a device's data, unless an oracle is asked for."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from errors import InputError
from randomness import generator
from validation import Section

from .augmentation import Augmentation
from .base import Setting
from .crops import CropParameters, Crops
from .training import LocalData, to_float


class Images(Protocol):
    """Where consolidation gets its images from (texts where networks read these). No labels, and no way to a device."""

    def draw(self, count: int, draw: torch.Generator) -> Tensor:
        """(count, channels, height, width), float32 in [-1, 1]; texts (count, length), uint8."""
        ...


class DataParameters(Section):
    """`methods.*.data`."""

    source: str = Field(
        "public",
        description="public (the stream's public split), image:PATH (crops of one picture; china.jpg and flower.jpg "
        "are there), noise, another source such as folder:PATH, or original (the devices' data: an oracle)",
    )
    allow_oracle: bool = Field(False, description="whether source may be original: the devices' data leave them")
    samples: int | None = Field(None, ge=1, description="images of a set that are used, or crops; by default no limit")
    crops: CropParameters = Field(default_factory=CropParameters, description="how a picture is cut up")

    @field_validator("source")
    @classmethod
    def _says_which(cls, source: str) -> str:
        if source in ("public", "noise", "original") or (":" in source and source.partition(":")[2].strip()):
            return source
        raise ValueError(f"must be public, noise, original, image:PATH or another source (got '{source}')")


class Sampled:
    """Samples of a set, drawn with replacement and augmented as training images are.

    Args:
        limit: only the first so many of an order drawn from `order`.
    """

    def __init__(
        self, data: LocalData, augmentation: Augmentation, order: torch.Generator, limit: int | None = None
    ) -> None:
        self.data, self.augmentation = data, augmentation
        self.rows = torch.randperm(len(data), generator=order)[:limit]

    def draw(self, count: int, draw: torch.Generator) -> Tensor:
        chosen = self.rows[torch.randint(len(self.rows), (count,), generator=draw)]
        images = self.data.batch(chosen.to(self.data.labels.device)).inputs
        return self.augmentation.apply(images, draw) if self.augmentation.active else images


class Noise:
    """Every pixel uniform over all grey levels, independent of all others."""

    def __init__(self, shape: tuple[int, ...], device: torch.device | str) -> None:
        self.shape, self.device = shape, device

    def draw(self, count: int, draw: torch.Generator) -> Tensor:
        pixels = torch.randint(0, 256, (count, *self.shape), generator=draw, dtype=torch.uint8)
        return to_float(pixels.to(self.device))


def images(parameters: DataParameters, setting: Setting, experience: int) -> Images:
    """The consolidation data; a limited set is the same in every consolidation.

    Args:
        experience: of the consolidation; `original` is all that the devices have had until then.
    Raises:
        InputError: texts; an empty set; `original` without `allow_oracle`; a file that is not there.
    """
    architecture, source = setting.architecture, parameters.source
    if architecture.modality == "text" and (source == "noise" or source.startswith("image:")):
        raise InputError(f"methods.*.data.source: {source} is for images (the stream has texts)")
    if source == "noise":
        return Noise(architecture.shape, setting.device)
    if source.startswith("image:"):
        picture = setting.picture(source.removeprefix("image:"))
        crops: Images = Crops(picture, architecture.shape, parameters.crops, setting.device)
        if parameters.samples is None:
            return crops
        drawn = crops.draw(parameters.samples, generator(setting.seed, "consolidation", "crops"))
        pixels = drawn.add(1).mul(127.5).round().to(torch.uint8).cpu().numpy()
        data = LocalData(pixels, np.zeros(len(pixels), np.int64), setting.device)
    elif source == "original":
        if not parameters.allow_oracle or setting.oracle is None:
            raise InputError(
                "methods.*.data.source: original is the devices' own data, which no federation may see; say "
                "--set methods.*.data.allow_oracle=true, with the method's name for *, to measure what it would give"
            )
        data = setting.oracle(experience)
    else:
        data = setting.public() if source == "public" else setting.outside(source)
    if not len(data):
        about = "; streams.*.public is the fraction that no client holds" if source == "public" else ""
        raise InputError(f"methods.*.data.source: {source} holds no samples{about}")
    order = generator(setting.seed, "consolidation", "samples")
    cut = source.startswith("image:")  # crops are varied enough
    return Sampled(data, Augmentation() if cut else setting.train.augmentation, order, parameters.samples)
