"""Networks by name: `build("cnn", shape=(1, 8, 8), classes=10, width=32)`.

A network is a `Classifier`: `features` maps images to vectors, `head` maps vectors to logits over the global label
space. Networks are built without memory (torch's meta device) and filled either from a state or by `initialise`,
which draws from a given generator: no global random state, so threads may build networks at the same time.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field, create_model
from torch import Tensor, nn

from errors import InputError, nearest
from validation import Section, checked

PositiveInt = Annotated[int, Field(ge=1)]  # the type of a width or a depth


class Classifier(nn.Module):
    """Images (batch, channels, height, width) in [-1, 1] -> logits (batch, classes)."""

    width: int  # length of a feature vector
    head: nn.Linear

    def features(self, images: Tensor) -> Tensor:
        """Images -> feature vectors (batch, width)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


_constructors: dict[str, type[Classifier]] = {}


def register(name: str) -> Callable[[type[Classifier]], type[Classifier]]:
    def add(constructor: type[Classifier]) -> type[Classifier]:
        _constructors[name] = constructor
        return constructor

    return add


def names() -> list[str]:
    return sorted(_constructors)


def check(name: str, options: Mapping[str, object]) -> dict[str, object]:
    """The network's options with defaults filled in.

    Raises:
        InputError: an unknown network or option (with the nearest valid names), or an option out of its range.
    """
    if name not in _constructors:
        raise InputError(f"model.name: no model '{name}'; {nearest(name, _constructors)}")
    signature = inspect.signature(_constructors[name], eval_str=True).parameters
    known = {key: (each.annotation, each.default) for key, each in signature.items() if key not in ("shape", "classes")}
    for option in options:
        if option not in known:
            hint = nearest(option, known) if known else "it has no options"
            raise InputError(f"model.{option}: model '{name}' has no option '{option}'; {hint}")
    return checked(create_model(name, __base__=Section, **known), dict(options), "model").model_dump()


def build(name: str, shape: tuple[int, int, int], classes: int, **options: object) -> Classifier:
    """The network `name` on the meta device: its structure, without memory.

    Args:
        name: one of `names()`.
        shape: channels, height and width of an image.
        classes: size of the global label space.
        options: the network's own keyword arguments.
    Raises:
        InputError: unknown name or option, or an option out of its range.
    """
    options = check(name, options)
    with torch.device("meta"):
        return _constructors[name](shape=shape, classes=classes, **options)


def initialise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Gives a meta-device network memory and PyTorch's default initial values, drawn from `generator` alone.

    Convolution and linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weight and bias (He et al. 2015 with
    a = sqrt(5), PyTorch's default); normalisation layers: weight 1, bias 0, running statistics 0 and 1.

    Raises:
        TypeError: a layer that holds parameters and is not known here (initialising it wrongly would be worse).
    """
    model = model.to_empty(device="cpu")
    for layer in model.modules():
        own = list(layer.parameters(recurse=False)) + list(layer.buffers(recurse=False))
        if not own:
            continue
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for parameter in own:
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif isinstance(layer, nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d):
            if layer.weight is not None:
                nn.init.ones_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            if isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats:
                layer.reset_running_stats()
        else:
            raise TypeError(f"initialise does not know the layer {type(layer).__name__}")
    return model


@dataclass(frozen=True)
class Architecture:
    """A network's name, shape and options: all that is needed to rebuild it anywhere from a state."""

    name: str
    shape: tuple[int, int, int]
    classes: int
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_template", build(self.name, self.shape, self.classes, **self.options))

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """A freshly initialised state dict (parameters and buffers)."""
        return initialise(copy.deepcopy(self._template), generator).state_dict()

    def load(self, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Classifier:
        """A network of its own that holds copies of `tensors`: training it leaves them as they are."""
        template = self._template.state_dict()
        if shapes(tensors) != shapes(template):
            different = dict(shapes(tensors) ^ shapes(template))
            raise ValueError(
                f"not the tensors of '{self.name}': {', '.join(sorted(different))} differ in name or shape"
            )
        # deepcopy takes what its memo holds for an object instead of copying it: the structure is copied, the
        # template's empty tensors are replaced. Three times faster than copying and then load_state_dict.
        memo: dict[int, object] = {}
        for name, parameter in self._template.named_parameters():
            memo[id(parameter)] = nn.Parameter(tensors[name].to(device, copy=True), parameter.requires_grad)
        for name, buffer in self._template.named_buffers():
            memo[id(buffer)] = tensors[name].to(device, copy=True)
        return copy.deepcopy(self._template, memo)


def shapes(tensors: Mapping[str, Tensor]) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in tensors.items()}
