"""Backbones by source: the project's own networks here, released ones in `models.released`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errors import InputError
from multitask import Layout
from randomness import generator

from .foundation import Backbone, FoundationParameters, example_images, example_texts
from .registry import Architecture, check, modality


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


class SeveralTasks(Backbone):
    """The network of several tasks, with its heads: records -> what the heads start from."""

    modality = "record"
    adaptable = ()

    def __init__(self, architecture: Architecture, network: nn.Module) -> None:
        super().__init__()
        self.architecture, self.network, self.width = architecture, network, network.width

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network.features(inputs)

    def example(self) -> Tensor:
        return torch.zeros(2, *self.architecture.shape, dtype=torch.uint8, device=next(self.parameters()).device)

    def description(self) -> dict[str, Any]:
        about = self.architecture
        return {"kind": "own", "name": about.name, "shape": list(about.shape), "options": dict(about.options)}


def own(name: str, shape: tuple[int, ...], options: Mapping[str, Any], draw: torch.Generator) -> Backbone:
    """One of the project's own networks, with initial values from `draw`."""
    if modality(name) == "record":
        classes = Layout.from_record(options["layout"]).classes if options.get("layout") else 1
        architecture = Architecture(name, shape, classes, options)
        return SeveralTasks(architecture, architecture.load(architecture.initial(draw)))
    architecture = Architecture(name, shape, 2, options)
    return OwnNetwork(architecture, architecture.load(architecture.initial(draw)))


def untrained(
    parameters: FoundationParameters, shape: tuple[int, ...], layout: Mapping[str, Any] | None = None
) -> Backbone:
    """The network that `source: pretrain` starts from.

    Args:
        layout: of the records, as a record itself, where the stream has several tasks.
    Raises:
        InputError: an unknown network, or one that does not read inputs of this shape.
    """
    options = {key: value for key, value in parameters.network.items() if key != "name"}
    name = parameters.network["name"]
    try:
        options = check(name, options)
        if layout and modality(name) == "record":
            options["layout"] = dict(layout)
        return own(name, shape, options, generator(parameters.seed, "foundation", "network"))
    except InputError as error:  # it speaks of the section `model`
        raise InputError(re.sub(r"\bmodel\.", "foundation.network.", str(error))) from None


def rebuild(description: Mapping[str, Any], folder: Path) -> Backbone:
    """The structure of a backbone from its `description`, its weights still to be filled in; nothing is downloaded.

    Args:
        folder: where the foundation model lies, with the files besides its weights (a tokenizer).
    """
    if description["kind"] == "own":
        return own(description["name"], tuple(description["shape"]), description["options"], torch.Generator())
    from . import released  # brings timm and transformers: seconds

    return released.rebuild(description, folder)
