"""A foundation model as an MLflow model: inputs in, features out. Nothing is pickled.

model = mlflow.pyfunc.load_model("models:/foundation-STREAM/latest")
features = model.predict(images)        # uint8 (n, channels, height, width), or texts (n, length) -> float32 (n, width)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from methods.pretraining import all_features
from methods.training import LocalData

from .foundation import open_foundation


class FeatureExtractor:
    """The backbone of a folder that `tasks.foundation.build` made."""

    def __init__(self, folder: Path) -> None:
        self.foundation = open_foundation(folder)

    def predict(self, inputs: np.ndarray, params: dict | None = None) -> np.ndarray:
        """Inputs as the stream has them, uint8 -> features (n, width), float32."""
        data = LocalData(np.asarray(inputs, dtype=np.uint8), np.zeros(len(inputs), dtype=np.int64))
        return all_features(self.foundation, data).numpy()


def _load_pyfunc(path: str) -> FeatureExtractor:
    """MLflow's entry point; `path` is the logged folder."""
    return FeatureExtractor(Path(path))
