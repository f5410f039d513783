"""Backbones by source: the project's own networks here, released ones in `models.released`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errors import InputError
from randomness import generator

from .foundation import Backbone, FoundationParameters, example_images, example_texts
from .registry import Architecture, check


class OwnNetwork(Backbone):
    """A network of `models`, without its head."""

    def __init__(self, architecture: Architecture, network: nn.Module) -> None:
        super().__init__()
        self.modality = architecture.modality
        self.architecture, self.network = architecture, network
        self.network.head = nn.Identity()
        self.width = network.width
        self.adaptable = tuple(name for name, each in self.named_modules() if isinstance(each, nn.Linear))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network.features(inputs)

    def example(self) -> Tensor:
        shape, device = self.architecture.shape, next(self.parameters()).device
        return example_texts(shape[0], device) if self.modality == "text" else example_images(shape, device)

    def description(self) -> dict[str, Any]:
        about = self.architecture
        return {"kind": "own", "name": about.name, "shape": list(about.shape), "options": dict(about.options)}


def untrained(parameters: FoundationParameters, shape: tuple[int, ...]) -> Backbone:
    """The network that `source: pretrain` starts from.

    Raises:
        InputError: an unknown network, or one that does not read inputs of this shape.
    """
    options = {key: value for key, value in parameters.network.items() if key != "name"}
    name = parameters.network["name"]
    try:
        architecture = Architecture(name, shape, 2, check(name, options))
        network = architecture.load(architecture.initial(generator(parameters.seed, "foundation", "network")))
    except InputError as error:  # it speaks of the section `model`
        raise InputError(re.sub(r"\bmodel\.", "foundation.network.", str(error))) from None
    return OwnNetwork(architecture, network)


def rebuild(description: Mapping[str, Any], folder: Path) -> Backbone:
    """The structure of a backbone from its `description`, its weights still to be filled in; nothing is downloaded.

    Args:
        folder: where the foundation model lies, with the files besides its weights (a tokenizer).
    """
    if description["kind"] == "own":
        shape, options = tuple(description["shape"]), description["options"]
        architecture = Architecture(description["name"], shape, 2, options)
        return OwnNetwork(architecture, architecture.load(architecture.initial(torch.Generator())))
    from . import released  # brings timm and transformers: seconds

    return released.rebuild(description, folder)
