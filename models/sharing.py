"""Copies of a frozen network that share its tensors and own only what they train."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def shared_copy(network: Network, owns: Callable[[str], bool] = lambda name: False) -> Network:
    """A copy whose structure may be changed and whose tensors are the network's own, however often it is copied.

    Args:
        network: its parameters take no gradients; so it is with those of the copy, but for what it owns.
        owns: of which parameters, by name, the copy has values of its own, which take gradients.
    """
    memo: dict[int, object] = {id(each): each for each in network.buffers()}
    for name, each in network.named_parameters():
        memo[id(each)] = nn.Parameter(each.detach().clone()) if owns(name) else each
    for module in network.modules():  # read only, and slow to copy
        if hasattr(module, "tokenizer"):
            memo[id(module.tokenizer)] = module.tokenizer
    return copy.deepcopy(network, memo)
