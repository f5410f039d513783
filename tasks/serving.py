"""A finished model as an MLflow model: images in, class probabilities out. Nothing is pickled.

model = mlflow.pyfunc.load_model("runs:/RUN_ID/model")
probabilities = model.predict(images)       # uint8 (n, channels, height, width) -> float32 (n, classes)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from methods.training import to_float
from models import Architecture

from .store import decode


class Predictor:
    """The model of a `models/*.safetensors` file; classes it never met get probability 0."""

    def __init__(self, path: str | Path) -> None:
        content = decode(Path(path).read_bytes())
        header = content.header
        shape = tuple(header["shape"])
        architecture = Architecture(header["architecture"], shape, header["classes"], header["options"])
        self.model = architecture.load(content.tensors).eval()
        self.shape, self.classes, self.seen = shape, header["classes"], header["seen"]

    @torch.no_grad()
    def predict(self, images: np.ndarray, params: dict | None = None) -> np.ndarray:
        """uint8 images (n, channels, height, width) -> probabilities (n, classes), float32."""
        logits = self.model(to_float(torch.from_numpy(np.ascontiguousarray(images, dtype=np.uint8))))
        probabilities = torch.zeros(len(logits), self.classes)
        probabilities[:, self.seen] = logits[:, self.seen].softmax(dim=1)
        return probabilities.numpy()


def _load_pyfunc(path: str) -> Predictor:
    """MLflow's entry point; `path` is the logged file, or the folder that holds it."""
    found = Path(path)
    return Predictor(found if found.is_file() else next(found.glob("*.safetensors")))
