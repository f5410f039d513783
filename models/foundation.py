"""Foundation models: a frozen backbone pre-trained on public data, and heads for the general tasks it was made for."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from validation import Section

SOURCES = {"pretrain": "", "timm:": "NAME", "torchvision:": "NAME", "hf:": "PATH_OR_NAME"}


class Pretraining(Section):
    """How `source: pretrain` trains: `foundation.pretraining`."""

    epochs: int = Field(100, ge=1, description="passes over the public split")
    batch_size: int = Field(32, ge=2, description="samples in a step")
    learning_rate: float = Field(0.0005, gt=0, description="first step size of AdamW, annealed to 0 (cosine)")
    weight_decay: float = Field(0.05, ge=0, description="of AdamW")
    reconstruction: float = Field(
        20.0, ge=0, description="weight of the reconstruction of the image from its features; 0 is none; images only"
    )
    crop: int = Field(1, ge=0, description="pixels of padding of which a random crop is taken; 0 is none; images only")
    flip: bool = Field(False, description="mirror every second image, drawn by lot; images only")


class FoundationParameters(Section):
    """The section `foundation` of params.yaml; a stream may override it for itself."""

    source: str = Field(
        "pretrain",
        description="pretrain (a network trained on the stream's public split), timm:NAME, torchvision:NAME or "
        "hf:PATH_OR_NAME (a Hugging Face folder or hub name)",
    )
    weights: str = Field(
        "released",
        description="timm and torchvision: released (downloaded), or the path of a file with the network's weights",
    )
    general: tuple[str, ...] = Field(
        (), description="general tasks: labels other than the stream's; parity, above_four for digits, else columns"
    )
    network: dict[str, Any] = Field(
        default_factory=lambda: {"name": "vit_tiny"}, description="pretrain: the network, as in the section model"
    )
    pretraining: Pretraining = Field(default_factory=Pretraining, description="pretrain: how it is trained")
    size: int | None = Field(
        None, ge=8, le=1024, description="pixels to which images are scaled; by default what the released model takes"
    )
    probe: int = Field(200, ge=1, description="steps in which heads for general tasks are fitted to a released model")
    seed: int = Field(0, ge=0, description="seed of pre-training; the experiment's own seed does not change it")

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        kind, _, rest = source.partition(":")
        if source != "pretrain" and not (f"{kind}:" in SOURCES and rest.strip()):
            *others, last = (repr(known + SOURCES[known]) for known in SOURCES)
            raise ValueError(f"must be {', '.join(others)} or {last}")
        return source

    @field_validator("general")
    @classmethod
    def _names_of_heads(cls, general: tuple[str, ...]) -> tuple[str, ...]:
        for task in general:
            if general.count(task) > 1:
                raise ValueError(f"must name each task once, and has '{task}' again")
            if not task or "." in task or hasattr(nn.ModuleDict, task) or hasattr(nn.ModuleDict(), task):
                raise ValueError(f"cannot have a task '{task}': PyTorch keeps this name for itself; rename the column")
        return general


class Backbone(nn.Module):
    """A pre-trained network without its head: inputs of the stream -> feature vectors (batch, width).

    Inputs are what every network of ours takes: images (batch, channels, height, width), float32 in [-1, 1], or texts
    (batch, length), the uint8 bytes of UTF-8. Scaling, normalisation and tokenisation are done inside.
    """

    modality: ClassVar[Literal["image", "text", "record"]]
    width: int  # length of a feature vector
    adaptable: tuple[str, ...]  # names of the linear layers that LoRA may adapt

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs -> features (batch, width)."""

    @abstractmethod
    def example(self) -> Tensor:
        """Two inputs of the kind and shape that it reads, the same every time."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Plain values from which the structure is built again without any download, see `backbones.rebuild`."""


def example_images(shape: Sequence[int], device: torch.device) -> Tensor:
    """Two images whose pixels rise from -1 to 1."""
    return torch.linspace(-1, 1, 2 * math.prod(shape), device=device).view(2, *shape)


def example_texts(length: int, device: torch.device) -> Tensor:
    """Two texts of several words, cut or filled up to `length` bytes."""
    rows = [each.encode()[:length].ljust(length, b"\0") for each in ("a text of six words here", "another of four")]
    return torch.tensor([list(row) for row in rows], dtype=torch.uint8, device=device)


class Foundation(nn.Module):
    """A backbone and its general heads, to be filled; frozen: no parameter takes gradients, always in evaluation mode.

    Args:
        backbone: gives the features.
        general: classes of each general task.
    """

    def __init__(self, backbone: Backbone, general: Mapping[str, int]) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.device("meta"):
            heads = {task: nn.Linear(backbone.width, count) for task, count in general.items()}
        self.general = nn.ModuleDict(heads).to_empty(device="cpu")
        self.requires_grad_(False)
        self.eval()

    @property
    def width(self) -> int:
        return self.backbone.width

    def features(self, inputs: Tensor) -> Tensor:
        """h_F(x): (batch, width)."""
        return self.backbone(inputs)

    def train(self, mode: bool = True) -> Foundation:
        return super().train(False)
