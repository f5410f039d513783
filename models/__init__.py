"""Networks: every module with a network registers its own; `build` makes them by name."""

from . import cnn, cnn4, mlp, mobilenet, multimodal, resnet, text, vgg, vit
from .initial import initialise
from .registry import Architecture, Classifier, build, check, modality, names, register

__all__ = [
    "Architecture",
    "Classifier",
    "build",
    "check",
    "cnn",
    "cnn4",
    "initialise",
    "mlp",
    "mobilenet",
    "modality",
    "multimodal",
    "names",
    "register",
    "resnet",
    "text",
    "vgg",
    "vit",
]
