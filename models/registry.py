"""Networks by name: `build("cnn", shape=(1, 8, 8), classes=10, width=32)`.

A network is a `Classifier`: `features` maps inputs to vectors, `head` maps vectors to logits over the global label
space. Networks are built without memory (torch's meta device) and filled either from a state or by `initialise`,
which draws from a given generator: no global random state, so threads may build networks at the same time.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, create_model
from torch import Tensor, nn

from errors import InputError, nearest
from validation import Section, checked

from .adapter import Adapter
from .initial import initialise
from .sharing import with_tensors

FAR = -1e9  # logit of a class that is not to be predicted

Reads = Literal["image", "text", "record"]
PositiveInt = Annotated[int, Field(ge=1)]  # the type of a width or a depth


class Classifier(nn.Module):
    """Inputs -> logits (batch, classes), through features.

    Inputs are images (batch, channels, height, width), float32 in [-1, 1], or, where `modality` says so, texts
    (batch, length), the uint8 bytes of UTF-8 with zeros after the end, or records of several tasks (batch, bytes). A
    network sets `width` and `head` and defines `pooled`; what `OF_ALL` names is dealt with here.
    """

    modality: ClassVar[Reads] = "image"
    width: int  # length of a feature vector
    head: nn.Linear
    projection: nn.Linear | None
    adapter: Adapter | None
    precision: torch.dtype  # in which the body multiplies; its weights and what comes out of it are float32

    def __init__(self) -> None:
        super().__init__()
        self.projection = None
        self.adapter = None
        self.precision = torch.float32

    def pooled(self, inputs: Tensor) -> Tensor:
        """Inputs -> the vectors (batch, width) that the network's body ends with."""
        raise NotImplementedError

    def project(self, features: int) -> None:
        """From now on a linear layer maps the body's vectors to `features` numbers, and the head starts from these."""
        self.projection = nn.Linear(self.width, features)
        self.head = nn.Linear(features, self.head.out_features)
        self.width = features

    def features(self, inputs: Tensor) -> Tensor:
        """Inputs -> feature vectors (batch, width), float32."""
        with self.autocast(inputs.device):
            vectors = self.pooled(inputs)
            vectors = vectors if self.projection is None else self.projection(vectors)
            vectors = vectors if self.adapter is None else self.adapter(vectors)
        return vectors.float()

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """Matrix products and convolutions in `precision`, what needs the range and the digits in float32."""
        if self.precision is torch.float32:
            return nullcontext()
        return torch.autocast(device.type, self.precision)

    def last_stage(self) -> list[nn.Module]:
        """The end of the body: its last block or layer with parameters, the normalisation after it, a projection."""
        body = [each for name, each in self.named_children() if name not in ("head", "projection", "adapter")]
        stage: list[nn.Module] = [each for each in (self.projection,) if each is not None]
        for each in reversed([inner for part in body for inner in layers(part)]):
            stage.append(each)
            if not isinstance(each, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d):
                break
        return stage

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))


def layers(part: nn.Module) -> list[nn.Module]:
    """The blocks and layers with parameters that follow each other in a part of a body."""
    if isinstance(part, nn.Sequential | nn.ModuleList):
        return [inner for each in part for inner in layers(each)]
    return [part] if any(True for _ in part.parameters()) else []


SHAPES = {"image": ("channels", "height", "width"), "text": ("length",), "record": ("bytes",)}  # of one input
GIVEN = ("layout", "tasks")  # arguments of networks of several tasks that come from the stream, not from params.yaml

OF_ALL = ("features", "adapter", "precision")  # options of every network of one task

_constructors: dict[str, type[Classifier]] = {}


def register(name: str) -> Callable[[type[Classifier]], type[Classifier]]:
    def add(constructor: type[Classifier]) -> type[Classifier]:
        _constructors[name] = constructor
        return constructor

    return add


def names() -> list[str]:
    return sorted(_constructors)


def modality(name: str) -> Reads:
    """What the network `name` reads."""
    return _known(name).modality


def _known(name: str) -> type[Classifier]:
    if name not in _constructors:
        raise InputError(f"model.name: no model '{name}'; {nearest(name, _constructors)}")
    return _constructors[name]


def check(name: str, options: Mapping[str, object]) -> dict[str, object]:
    """The network's options with defaults filled in.

    Every network of one task has the options `features`, the length of its feature vectors, whatever its body ends
    with, so that different networks can share prototypes, `adapter`, the units of an adapter on its features, and
    `precision`, in which its body computes.
    They are left out where they are not given: a run without them is the run it was.

    Raises:
        InputError: an unknown network or option (with the nearest valid names), or an option out of its range.
    """
    signature = inspect.signature(_known(name), eval_str=True).parameters
    given = ("shape", "classes", *GIVEN)
    known = {key: (each.annotation, each.default) for key, each in signature.items() if key not in given}
    if modality(name) != "record":  # whose head is several
        known |= dict.fromkeys(("features", "adapter"), (PositiveInt | None, None))
        known["precision"] = (Literal["float32", "bfloat16"] | None, None)
    for option in options:
        if option not in known:
            raise InputError(f"model.{option}: model '{name}' has no option '{option}'; {nearest(option, known)}")
    full = checked(create_model(name, __base__=Section, **known), dict(options), "model").model_dump()
    return {key: value for key, value in full.items() if key not in OF_ALL or value not in (None, "float32")}


def build(name: str, shape: tuple[int, ...], classes: int, **options: object) -> Classifier:
    """The network `name` on the meta device: its structure, without memory.

    Args:
        name: one of `names()`.
        shape: of one input: channels, height and width of an image, or the length of a text in bytes.
        classes: size of the global label space.
        options: the network's own keyword arguments, `features`, `adapter` and `precision`.
    Raises:
        InputError: unknown name or option, an option out of its range, or inputs that are not the network's.
    """
    given = {key: options[key] for key in GIVEN if key in options}
    options = check(name, {key: value for key, value in options.items() if key not in GIVEN}) | given
    features, adapter, precision = (options.pop(each, None) for each in OF_ALL)
    kind = modality(name)
    if len(shape) != len(SHAPES[kind]):
        expected, got = ", ".join(SHAPES[kind]), ", ".join(map(str, shape))
        raise InputError(f"model.name: {name} needs {kind}s of shape ({expected}) (got inputs of shape ({got}))")
    with torch.device("meta"):
        model = _constructors[name](shape=shape, classes=classes, **options)
        if features is not None:
            model.project(features)
        if adapter is not None:
            model.adapter = Adapter(model.width, adapter)
    model.precision = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return model


@dataclass(frozen=True)
class Architecture:
    """A network's name, shape and options: all that is needed to rebuild it anywhere from a state."""

    name: str
    shape: tuple[int, ...]
    classes: int
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_template", build(self.name, self.shape, self.classes, **self.options))

    @property
    def modality(self) -> Reads:
        """What the network reads."""
        return modality(self.name)

    @property
    def template(self) -> Classifier:
        """The structure, on the meta device. Never changed."""
        return self._template

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the tensors of a state dict."""
        return tuple(self._template.state_dict())

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """A freshly initialised state dict (parameters and buffers)."""
        return initialise(copy.deepcopy(self._template), generator).state_dict()

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """What `load` takes, of a network that it gave."""
        return model.state_dict()

    def load(self, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Classifier:
        """A network of its own that holds copies of `tensors`: training it leaves them as they are."""
        template = self._template.state_dict()
        if shapes(tensors) != shapes(template):
            different = dict(shapes(tensors) ^ shapes(template))
            raise ValueError(
                f"not the tensors of '{self.name}': {', '.join(sorted(different))} differ in name or shape"
            )
        own: dict[int, Tensor] = {}
        for name, parameter in self._template.named_parameters():
            own[id(parameter)] = nn.Parameter(tensors[name].to(device, copy=True), parameter.requires_grad)
        for name, buffer in self._template.named_buffers():
            own[id(buffer)] = tensors[name].to(device, copy=True)
        return with_tensors(self._template, own)


def shapes(tensors: Mapping[str, Tensor]) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in tensors.items()}
