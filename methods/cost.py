"""What training a part of a transformer costs: passes through its blocks, and memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from errors import InputError
from models.adapted import Adapted
from models.registry import Classifier

from .training import TrainParameters


@dataclass(frozen=True)
class Cost:
    """Time and memory of training a subset S of a transformer's K units, see `Adapted.units`. [ours, checked]

        T(S) = (L+K) f + (number of blocks from the lowest of S up) f + |S| f          f = forward pass of one block
        M(S) = (number of blocks from the lowest of S up) a + |S| o

    Backward has to pass every block above the lowest that is trained, so one low block costs more than several high
    ones. Time is for one minibatch, in units of f; memory in numbers, a what one block keeps of a minibatch for the
    backward pass (counted, see `activations`), o the gradients and the optimizer's state of one unit.

    `benchmarks/block_cost.py` compares T with measured step times.
    """

    blocks: int  # L + K
    places: tuple[int, ...]  # of the K units in the row of blocks, from 0 at the bottom, rising
    activations: float = 1.0  # a
    state: float = 0.0  # o

    def time(self, lowest: int, size: int) -> float:
        """T of a subset of `size` units whose lowest is the `lowest`-th."""
        return self.blocks + (self.blocks - self.places[lowest]) + size

    def memory(self, lowest: int, size: int) -> float:
        """M of it."""
        return (self.blocks - self.places[lowest]) * self.activations + size * self.state

    @property
    def all(self) -> tuple[float, float]:
        """T and M of all units."""
        units = len(self.places)
        return self.time(0, units), self.memory(0, units)


def block_forwards(model: Adapted) -> float:
    """T of what a model trains, whatever that is: |S| is the trained parameters in its blocks, in blocks.

    Blocks that are switched off cost nothing.

    With the head alone only the forward pass remains. 0 where the foundation model is no transformer.
    """
    try:
        blocks = [block for block in model.blocks.values() if getattr(block, "on", True)]
    except InputError:
        return 0.0
    sizes = [sum(each.numel() for each in block.parameters()) for block in blocks]
    trained = [sum(each.numel() for each in block.parameters() if each.requires_grad) for block in blocks]
    lowest = next((place for place, part in enumerate(trained) if part), len(blocks))
    shares = sum(part / size for part, size in zip(trained, sizes, strict=True))
    return len(blocks) + (len(blocks) - lowest) + shares


def cost(model: Adapted, train: TrainParameters) -> Cost:
    """The cost of training subsets of a model's units."""
    blocks = list(model.blocks)
    places = tuple(blocks.index(name) for name in model.units)
    unit = sum(each.numel() for each in next(iter(model.units.values())).parameters())
    states = bool(train.momentum) if train.optimizer == "sgd" else 2  # tensors that it keeps for each parameter
    return Cost(len(blocks), places, activations(model, train.batch_size), (1 + states) * unit)


def activations(model: Adapted, batch_size: int) -> float:
    """How many numbers one block keeps of a minibatch for the backward pass, counted on an example.

    Parameters are not counted, tensors that share memory once. All units are trained, so for few of them it is an
    upper bound. Counted on the CPU and in float32, so that neither a device's kernels nor a precision change who
    trains what.
    """
    model = copy.deepcopy(model).cpu()
    for each in model.modules():
        if isinstance(each, Classifier):
            each.precision = torch.float32
    own = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, Tensor] = {}  # held, since what is freed might give its place to another

    def remember(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own and (place not in kept or kept[place].numel() < tensor.numel()):
            kept[place] = tensor
        return tensor

    inputs = model.foundation.backbone.example()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        model.features(inputs)
    blocks = list(model.blocks)
    above = len(blocks) - blocks.index(next(iter(model.units)))
    return sum(each.numel() for each in kept.values()) / above / len(inputs) * batch_size
