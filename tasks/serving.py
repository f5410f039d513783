"""A finished model as an MLflow model: images in, class probabilities out. Nothing is pickled.

model = mlflow.pyfunc.load_model("runs:/RUN_ID/model")
probabilities = model.predict(images)       # uint8 (n, channels, height, width) -> float32 (n, classes)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from methods import State
from methods.training import LocalData
from models import Architecture
from models.experts import MostConfident
from models.prototypes import NearestPrototype

from .store import decode


class Predictor:
    """The model of a `models/*.safetensors` file; classes it never met get probability 0."""

    def __init__(self, path: str | Path) -> None:
        content = decode(Path(path).read_bytes())
        header = content.header
        shape = tuple(header["shape"])
        architecture = Architecture(header["architecture"], shape, header["classes"], header["options"])
        self.model = load(architecture, content.tensors, header).eval()
        self.shape, self.classes, self.seen = shape, header["classes"], header["seen"]

    @torch.no_grad()
    def predict(self, inputs: np.ndarray, params: dict | None = None) -> np.ndarray:
        """uint8 images (n, channels, height, width) or texts (n, length) -> probabilities (n, classes), float32."""
        data = LocalData(np.asarray(inputs, dtype=np.uint8), np.zeros(len(inputs), dtype=np.int64))
        logits = self.model(data.batch(torch.arange(len(data))).inputs)
        probabilities = torch.zeros(len(logits), self.classes)
        probabilities[:, self.seen] = logits[:, self.seen].softmax(dim=1)
        return probabilities.numpy()


def load(architecture: Architecture, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> nn.Module:
    """The module that `tasks.results.rebuilt` described."""
    if header["classifier"] == "head":
        return architecture.load(tensors)
    own = State(tensors)
    if header["classifier"] == "most confident":
        networks = [architecture.load(own.part(f"networks.{place}")) for place in range(len(tensors["known"]))]
        return MostConfident(networks, tensors["known"])
    network = architecture.load(own.part("network"))
    return NearestPrototype(network, tensors["prototypes"], tensors["known"], header["normalise"])


def _load_pyfunc(path: str) -> Predictor:
    """MLflow's entry point; `path` is the logged file, or the folder that holds it."""
    found = Path(path)
    return Predictor(found if found.is_file() else next(found.glob("*.safetensors")))
