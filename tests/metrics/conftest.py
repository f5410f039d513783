"""Hand-made measurements, in the shape in which the pipeline writes them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="session")
def measured():
    """Builds an accuracy matrix frame from rows (model, client, trained, tested, accuracy)."""

    def build(*rows):
        frame = pd.DataFrame(rows, columns=["model", "client", "trained", "tested", "accuracy"])
        return frame.assign(samples=10)

    return build


@pytest.fixture(scope="session")
def global_model(measured):
    """Builds the frame of a global model from `R` and, if given, its untrained row."""

    def build(R, untrained=None):
        table = dict(enumerate(np.asarray(R)))
        if untrained is not None:
            table[-1] = untrained
        return measured(*(("global", -1, a, b, value) for a, row in table.items() for b, value in enumerate(row)))

    return build


@pytest.fixture(scope="session")
def rounds():
    """Two clients, two experiences; the second has two rounds, and in its first, client 1's upload is refused."""
    who, cost = ["experience", "round", "client"], ["bytes_up", "bytes_down", "seconds"]
    columns = [*who, "samples", "steps", "loss", *cost, "admitted", "reason"]
    rows = [
        (0, 0, 0, 10, 1, 0.5, 100, 200, 1.0, True, ""),
        (0, 0, 1, 20, 2, 0.5, 100, 200, 3.0, True, ""),
        (1, 0, 0, 10, 1, 0.5, 101, 200, 2.0, True, ""),
        (1, 0, 1, 20, 2, 0.5, 7, 200, 0.5, False, "not finite"),
        (1, 1, 0, 10, 1, 0.5, 100, 200, 1.5, True, ""),
    ]
    return pd.DataFrame(rows, columns=columns)
