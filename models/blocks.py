"""The row of transformer blocks in a network, whosever it is: timm, torchvision, Hugging Face or our own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from errors import InputError

ATTENTION = ("attention", "attn")  # in the names that libraries give a block's attention


@dataclass(frozen=True)
class Stack:
    """Where a network's blocks are: `network.get_submodule(path)` is a list of them, each by its own name."""

    path: str
    names: tuple[str, ...]  # of the blocks, in the network
    blocks: tuple[nn.Module, ...]

    def replace(self, network: nn.Module, blocks: Sequence[nn.Module], origins: Sequence[int]) -> None:
        """Puts other blocks in their place, in a network of the same structure.

        Args:
            origins: which of the blocks before each of them was, or is a copy of.
        """
        parent, _, name = self.path.rpartition(".")
        owner = network.get_submodule(parent)
        sequence = isinstance(getattr(owner, name), nn.Sequential)
        setattr(owner, name, nn.Sequential(*blocks) if sequence else nn.ModuleList(blocks))
        # decoders run as many blocks as their configuration says, with the kind of attention that it says
        owners = [module for module in network.modules() if "config" in vars(module)]
        configs = {id(module.config): copy.deepcopy(module.config) for module in owners}  # it may be another network's
        for module in owners:
            module.config = configs[id(module.config)]
        for config in configs.values():
            if len(getattr(config, "layer_types", None) or ()) == len(self.blocks):
                config.layer_types = [config.layer_types[origin] for origin in origins]
            if getattr(config, "num_hidden_layers", None) == len(self.blocks):  # ALBERT runs its one block many times
                config.num_hidden_layers = len(blocks)


class Row(nn.Module):
    """What stands in for a block in a row of blocks and hands on what that block is asked for."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # networks ask their blocks for the kind of attention, for example
            return getattr(super().__getattr__("block"), name)


def stack(network: nn.Module) -> Stack:
    """The longest row of modules of one class that have an attention and an MLP.

    Raises:
        InputError: there is none: the network is no transformer.
    """
    rows = {
        path: tuple(row)
        for path, row in network.named_modules()
        if isinstance(row, nn.Sequential | nn.ModuleList)
        and len(row)
        and len({type(original(each)) for each in row}) == 1
        and outputs(row[0])
    }
    if not rows:
        raise InputError(
            "foundation: this network has no row of transformer blocks, each with an attention and an MLP; choose a "
            f"transformer, such as foundation.network.name=vit_tiny (got {type(network).__name__})"
        )
    path = max(rows, key=lambda path: len(rows[path]))
    names = (f"{path}.{name}" for name, _ in network.get_submodule(path).named_children())
    return Stack(path, tuple(names), rows[path])


def original(block: nn.Module) -> nn.Module:
    """A block without what stands around it."""
    return original(block.block) if isinstance(block, Row) else block


def is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"  # GPT-2's, with its weight transposed


def given(layer: nn.Module) -> int:
    """How many numbers a linear layer gives."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.nf


def width(block: nn.Module) -> int:
    """The length of a block's tokens."""
    return given(outputs(block)[0])


def outputs(block: nn.Module) -> list[nn.Module]:
    """A block's two output projections: the last linear layers of its attention and of all others, of equal width.

    None where it is no transformer block. Layers that give something else than tokens may come after them: CaiT mixes
    its heads, a mixture of experts weighs one.
    """
    linear = {name: each for name, each in original(block).named_modules() if is_linear(each)}
    inside = [name for name in linear if name.split(".")[0].lower().endswith(ATTENTION)]
    outside = [name for name in linear if name not in inside]
    pairs = ([linear[one], linear[other]] for other in reversed(outside) for one in reversed(inside))
    return next((pair for pair in pairs if given(pair[0]) == given(pair[1])), [])


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The tokens of what a block returns."""
    return output[0] if isinstance(output, tuple) else output


def with_tokens(output: Any, tokens: Tensor) -> Any:
    """What a block returned, with other tokens."""
    return (tokens, *output[1:]) if isinstance(output, tuple) else tokens


@torch.no_grad()
def same_output(one: nn.Module, other: nn.Module, inputs: Tensor) -> bool:
    """Whether two networks give the same to the last bit."""
    return torch.equal(one(inputs), other(inputs))
