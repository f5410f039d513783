"""What the linear and convolutional layers of a network are fed with, as columns of a matrix.

A layer with a weight W and a bias b computes [W b] [x; 1]: a bias is the weight of a constant input. A convolution
computes it for every patch x of its input map, a grouped one for the patches of every group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d


def layers(model: nn.Module) -> dict[str, Layer]:
    """The layers of a network whose inputs are known here, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Layer)}


def width(layer: Layer) -> int:
    """Length of a column: the inputs of one output, and 1 for the bias if there is one."""
    return math.prod(layer.weight.shape[1:]) + (layer.bias is not None)


@torch.no_grad()
def columns(model: nn.Module, inputs: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """What a forward pass of `inputs` feeds the layers `names` with: (width, columns) each.

    Columns are the samples, times the positions in a map or a sequence, times the groups of a convolution.
    """
    fed: dict[str, list[Tensor]] = {}
    known = layers(model)
    hooks = [
        known[name].register_forward_pre_hook(
            lambda layer, given, name=name: fed.setdefault(name, []).append(as_columns(layer, given[0].float()))
        )
        for name in names
    ]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(parts, dim=1) for name, parts in fed.items()}


def as_columns(layer: Layer, given: Tensor) -> Tensor:
    """(samples, ..., inputs) of a linear layer or (samples, channels, height, width) of a convolution."""
    if isinstance(layer, nn.Linear):
        found = given.flatten(0, -2).T
    else:
        patches = F.unfold(given, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        found = patches.unflatten(1, (layer.groups, -1)).permute(2, 1, 0, 3).flatten(1)
    return found if layer.bias is None else torch.cat([found, found.new_ones(1, found.shape[1])])


def joined(layer: str, tensors: dict[str, Tensor]) -> Tensor:
    """[W b] of `layer` from a state dict: (outputs, width)."""
    weight, bias = tensors[f"{layer}.weight"].flatten(1), tensors.get(f"{layer}.bias")
    return weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)


def parted(layer: str, matrix: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `joined`: the entries of a state dict, shaped and typed like those of `tensors`."""
    weight = tensors[f"{layer}.weight"]
    inputs = math.prod(weight.shape[1:])
    parts = {f"{layer}.weight": matrix[:, :inputs].reshape(weight.shape).to(weight.dtype).contiguous()}
    if f"{layer}.bias" in tensors:
        parts[f"{layer}.bias"] = matrix[:, inputs].to(weight.dtype).contiguous()
    return parts
