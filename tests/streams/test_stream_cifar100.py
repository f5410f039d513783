"""The real CIFAR-100, where the shared data folder beside the project holds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streams.parameters import StreamParameters
from streams.stream import build

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "cifar100"


@pytest.mark.skipif(not FOLDER.is_dir(), reason="no CIFAR-100 in ../shared/data/cifar100")
def test_cifar100_in_ten_experiences_for_five_clients(tmp_path):
    parameters = StreamParameters(
        source=f"parquet:{FOLDER}",
        label="fine_label",
        clients=5,
        experiences=10,
        partition={"kind": "dirichlet", "alpha": 0.5},
    )
    stream = build("cifar100", parameters, tmp_path)
    assert stream.shape == (3, 32, 32) and stream.classes == 100 and len(stream.labels) == 60_000
    assert np.array_equal(np.bincount(stream.labels), np.full(100, 600))
    for experience in range(10):
        assert len(stream.classes_of(0, experience)) == 10
        assert sum(len(stream.train(client, experience)) for client in range(5)) == 5_000
        assert len(stream.test(None, experience)) == 1_000
        assert stream.test(None, experience).min() >= 50_000  # the source's own test split
    table = stream.describe()
    assert table["train"].max() > 1.5 * table["train"].min()
