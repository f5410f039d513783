"""A finished model as an MLflow model: images in, class probabilities out. Nothing is pickled.

model = mlflow.pyfunc.load_model("runs:/RUN_ID/model")
probabilities = model.predict(images)       # uint8 (n, channels, height, width) -> float32 (n, classes)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from methods.training import LocalData

from .foundation import WEIGHTS
from .saved import restored
from .store import decode


class Predictor:
    """The model of a `models/*.safetensors` file; classes it never met get probability 0."""

    def __init__(self, path: str | Path) -> None:
        content = decode(Path(path).read_bytes())
        header = content.header
        self.model = restored(content.tensors, header, Path(path).parent).eval()
        self.shape, self.classes, self.seen = tuple(header["shape"]), header["classes"], header["seen"]

    @torch.no_grad()
    def predict(self, inputs: np.ndarray, params: dict | None = None) -> np.ndarray:
        """uint8 images (n, channels, height, width) or texts (n, length) -> probabilities (n, classes), float32."""
        data = LocalData(np.asarray(inputs, dtype=np.uint8), np.zeros(len(inputs), dtype=np.int64))
        logits = self.model(data.batch(torch.arange(len(data))).inputs)
        probabilities = torch.zeros(len(logits), self.classes)
        probabilities[:, self.seen] = logits[:, self.seen].softmax(dim=1)
        return probabilities.numpy()


def _load_pyfunc(path: str) -> Predictor:
    """MLflow's entry point; `path` is the logged file, or the folder that holds it and a foundation model's files."""
    found = Path(path)
    files = [found] if found.is_file() else [each for each in found.glob("*.safetensors") if each.name != WEIGHTS]
    return Predictor(files[0])
