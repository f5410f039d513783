"""Networks: every module here registers its own; `build` makes them by name."""

from . import cnn, mlp, resnet
from .registry import Architecture, Classifier, build, check, initialise, names, register

__all__ = [
    "Architecture",
    "Classifier",
    "build",
    "check",
    "cnn",
    "initialise",
    "mlp",
    "names",
    "register",
    "resnet",
]
