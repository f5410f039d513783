"""A method's final models as files, and back: what is saved of each kind of module, and how it is built again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from methods import State
from methods.state import prefixed
from models import Architecture
from models.adapted import Adapted, ClassMeans, Collaborative
from models.experts import Averaged, LeastEntropy, MostConfident
from models.foundation import Foundation
from models.prototypes import NearestPrototype

from .foundation import open_foundation

SEVERAL = {"most confident": MostConfident, "averaged": Averaged, "least entropy": LeastEntropy}  # of experts
BACKBONE = "backbone"  # the folder beside the models where the run's foundation model lies, once for all of them


def content(model: nn.Module, architecture: Architecture) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a model, without those of a frozen foundation model, and what else `restored` needs."""
    about = {
        "architecture": architecture.name,
        "shape": list(architecture.shape),
        "classes": architecture.classes,
        "options": dict(architecture.options),
    }
    tensors, kind = _content(model)
    return {name: each.detach().cpu() for name, each in tensors.items()}, about | kind


def _content(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if isinstance(model, Collaborative):
        small, (large, about) = model.small.state_dict(), _content(model.foundation)
        tensors = {**prefixed("small", small), **prefixed("large", large), "own": model.own}
        return tensors, {"classifier": "collaborative", "large": about}
    if isinstance(model, Adapted):
        return dict(model.psi()), {"classifier": "adapted", "adapted": model.options}
    if isinstance(model, ClassMeans):
        tensors = {"means": model.means, "known": model.known}
        return tensors, {"classifier": "class means", "temperature": model.temperature}
    kind: dict[str, Any] = {"classifier": "head"}
    if isinstance(model, NearestPrototype):
        kind = {"classifier": "nearest prototype", "normalise": model.normalise}
    for name, several in SEVERAL.items():
        if type(model) is several:
            kind = {"classifier": name}
    return model.state_dict(), kind


def restored(tensors: Mapping[str, Tensor], header: Mapping[str, Any], beside: Path) -> nn.Module:
    """The module that `content` described.

    Args:
        beside: the folder of the file; a foundation model lies in it or in its folder `backbone`.
    """
    architecture = Architecture(header["architecture"], tuple(header["shape"]), header["classes"], header["options"])
    return _restored(tensors, header, architecture, beside)


def _restored(
    tensors: Mapping[str, Tensor], about: Mapping[str, Any], architecture: Architecture, beside: Path
) -> nn.Module:
    own, kind = State(tensors), about["classifier"]
    if kind == "head":
        return architecture.load(tensors)
    if kind in SEVERAL:
        networks = [architecture.load(own.part(f"networks.{place}")) for place in range(len(tensors["known"]))]
        return SEVERAL[kind](networks, tensors["known"])
    if kind == "nearest prototype":
        network = architecture.load(own.part("network"))
        return NearestPrototype(network, tensors["prototypes"], tensors["known"], about["normalise"])
    if kind == "collaborative":
        large = _restored(own.part("large"), about["large"], architecture, beside)
        return Collaborative(architecture.load(own.part("small")), large, tensors["own"])
    foundation = _foundation(beside)
    if kind == "class means":
        return ClassMeans(foundation, tensors["means"], tensors["known"], about["temperature"])
    return Adapted(foundation, architecture.classes, **about["adapted"]).load_psi(tensors)


def _foundation(beside: Path) -> Foundation:
    inner = beside / BACKBONE
    return open_foundation(inner if inner.is_dir() else beside)
