"""Copies of a network's structure with tensors of one's choice: training a copy leaves the original as it is."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
CONTAINERS = (dict, OrderedDict, list, tuple, set)  # of these very types, in which modules are looked for


def with_tensors(network: Network, tensors: Mapping[int, Tensor]) -> Network:
    """A copy of a network's modules in which tensors are replaced; all else that modules hold is shared.

    Twenty times faster than copy.deepcopy, which looks into every empty dictionary of hooks. [checked: a transformer
    of nine blocks, 2 against 40 ms]

    Args:
        tensors: what stands for each parameter and buffer, by the id of the original; the others are shared.
    """
    known: dict[int, Any] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return module(value)
        if isinstance(value, Tensor):
            return tensors.get(id(value), value)
        if type(value) in CONTAINERS:
            if not value:
                return type(value)()
            if isinstance(value, dict):
                return type(value)((key, copied(each)) for key, each in value.items())
            return type(value)(map(copied, value))
        if inspect.ismethod(value) and isinstance(value.__self__, nn.Module):
            return MethodType(value.__func__, module(value.__self__))
        return value

    def module(original: nn.Module) -> nn.Module:
        if id(original) not in known:
            known[id(original)] = new = type(original).__new__(type(original))
            new.__dict__.update((name, copied(each)) for name, each in vars(original).items())
        return known[id(original)]

    return module(network)


def shared_copy(network: Network, owns: Callable[[str], bool] = lambda name: False) -> Network:
    """A copy whose structure may be changed and whose tensors are the network's own, however often it is copied.

    Args:
        network: its parameters take no gradients; so it is with those of the copy, but for what it owns.
        owns: of which parameters, by name, the copy has values of its own, which take gradients.
    """
    own = {id(each): nn.Parameter(each.detach().clone()) for name, each in network.named_parameters() if owns(name)}
    return with_tensors(network, own)
