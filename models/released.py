"""Released foundation models: `timm:NAME`, `torchvision:NAME` and `hf:PATH_OR_NAME` as backbones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from errors import InputError

from . import released_hf, released_timm, released_torchvision
from .foundation import Backbone, FoundationParameters
from .registry import SHAPES
from .released_texts import TextBackbone, text_structure
from .released_weights import one_line

OTHERS = {"timm": released_timm, "torchvision": released_torchvision}
Result = TypeVar("Result")


def load(parameters: FoundationParameters, shape: tuple[int, ...], root: Path, folder: Path) -> Backbone:
    """A released backbone with its weights.

    Args:
        shape: of one input: channels, height and width of an image, or the length of a text in bytes.
        root: what relative paths in `parameters` start from.
        folder: gets the files that are needed besides the weights (tokenizer.json), for `rebuild`.
    Raises:
        InputError: an unknown name, missing or wrong weights, a network that reads other inputs than the stream's, or
            one that cannot be built for images of `foundation.size`.
    """
    library = parameters.source.partition(":")[0]
    if library in OTHERS:
        check_modality(parameters, "image", shape)
        backbone = sized(parameters, lambda: OTHERS[library].backbone(OTHERS[library].structure_of(parameters)))
        OTHERS[library].fill_in(backbone, parameters, root)
    else:
        backbone = load_hf(parameters, shape, root, folder)
    probe(backbone, parameters, shape)
    return backbone


def load_hf(parameters: FoundationParameters, shape: tuple[int, ...], root: Path, folder: Path) -> Backbone:
    source = released_hf.folder_of(parameters, root)
    network = released_hf.load_network(source)
    kind = {"pixel_values": "image", "input_ids": "text"}.get(network.main_input_name)
    if kind is None or network.config.is_encoder_decoder:
        raise InputError(
            f"foundation.source: {parameters.source} must be an encoder of images, or an encoder or a decoder of texts "
            f"(got {type(network).__name__})"
        )
    check_modality(parameters, kind, shape)
    if kind == "image":
        structure = released_hf.image_structure(network, source, parameters)
        return released_hf.HuggingFaceImages(network, structure)
    if parameters.size is not None:
        raise InputError(f"foundation.size is for images ({parameters.source} reads texts)")
    return TextBackbone(network, text_structure(network, source, folder), folder)


def rebuild(description: Mapping[str, Any], folder: Path) -> Backbone:
    """The structure of a backbone from its `description`, its weights still to be filled in; nothing is downloaded.

    Args:
        folder: the `folder` of `load`.
    """
    structure = {key: value for key, value in description.items() if key not in ("width", "adaptable")}
    if description["kind"] in OTHERS:
        backbone = OTHERS[description["kind"]].backbone(structure)
    else:
        network = released_hf.built_network(description["config"])
        if description["modality"] == "image":
            backbone = released_hf.HuggingFaceImages(network, structure)
        else:
            backbone = TextBackbone(network, structure, folder)
    backbone.width, backbone.adaptable = description["width"], tuple(description["adaptable"])
    return backbone


def check_modality(parameters: FoundationParameters, kind: str, shape: tuple[int, ...]) -> None:
    """Raises InputError if a network for inputs of this `kind` does not read inputs of this shape."""
    if len(shape) != len(SHAPES[kind]):
        expected, got = ", ".join(SHAPES[kind]), ", ".join(map(str, shape))
        raise InputError(
            f"foundation.source: {parameters.source} reads {kind}s of shape ({expected}) (got inputs of shape ({got}))"
        )


def sized(parameters: FoundationParameters, step: Callable[[], Result]) -> Result:
    """What `step` returns; libraries say in many ways that they cannot do an image size."""
    try:
        return step()
    except InputError:
        raise
    except (RuntimeError, ValueError, AssertionError, TypeError) as problem:
        key = "foundation.source" if parameters.size is None else "foundation.size"
        what = f"{parameters.source} does not work" + (f" at {parameters.size} pixels" if parameters.size else "")
        raise InputError(f"{key}: {what} ({one_line(problem)})") from None


def probe(backbone: Backbone, parameters: FoundationParameters, shape: tuple[int, ...]) -> None:
    """Shows one input to the network: does it work on the stream's shape, what is its `width`, what is `adaptable`?

    Some networks read the weights of a layer without calling it, past an adapter on it: those layers are left out.
    """
    if backbone.modality == "image":
        channels = backbone.structure["channels"]
        if shape[0] not in (1, channels):
            raise InputError(
                f"foundation.source: {parameters.source} reads images of 1 or {channels} channels (got {shape[0]})"
            )
        inputs = torch.zeros(1, *shape)
    else:
        inputs = torch.full((1, shape[0]), ord("a"), dtype=torch.uint8)
    called: set[str] = set()
    hooks = [
        backbone.get_submodule(name).register_forward_hook(lambda *_, name=name: called.add(name))
        for name in backbone.adaptable
    ]
    with torch.no_grad():
        features = sized(parameters, lambda: backbone(inputs))
    for hook in hooks:
        hook.remove()
    if features.ndim != 2:
        raise InputError(
            f"foundation.source: {parameters.source} must give one vector an input (got features of shape "
            f"{tuple(features.shape)})"
        )
    backbone.width = features.shape[1]
    backbone.adaptable = tuple(name for name in backbone.adaptable if name in called)
