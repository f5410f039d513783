"""Figures exist, and the same numbers give the same bytes."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest

from metrics.plots import draw_accuracy, draw_allocation, draw_comparison, draw_matrix
from metrics.summary import over_experiences

PNG = b"\x89PNG\r\n\x1a\n"


def falling(experiences):
    """A model that forgets: 0.9 when learnt, 0.1 less per experience since, down to 0."""
    age = np.subtract.outer(np.arange(experiences), np.arange(experiences))
    return np.where(age < 0, 0.1, np.clip(0.9 - 0.1 * age, 0, 1))


@pytest.mark.parametrize("draw", [draw_accuracy, draw_matrix])
@pytest.mark.parametrize("experiences", [1, 3, 12])
def test_a_run_is_drawn_the_same_every_time(tmp_path, global_model, draw, experiences):
    frame = global_model(falling(experiences), np.full(experiences, 0.1))
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    draw(frame, "global", "fedavg on digits", first)
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 5}):  # the user's own style
        draw(frame, "global", "fedavg on digits", again)
    assert first.read_bytes().startswith(PNG)
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("draw", [draw_accuracy, draw_matrix])
def test_cells_nobody_measured_are_drawn_too(tmp_path, measured, draw):
    draw(measured(("global", -1, 0, 0, 0.9), ("global", -1, 1, 1, 0.9)), "global", "holes", tmp_path / "holes.png")
    assert (tmp_path / "holes.png").read_bytes().startswith(PNG)


def test_methods_are_compared_over_one_or_more_seeds(tmp_path, global_model, rounds):
    seeds = [over_experiences(global_model(falling(3) - shift), rounds, "global") for shift in (0.0, 0.05)]
    curves = {"fedavg": seeds, "local": seeds[:1], "joint": seeds}
    for name in ("first.png", "again.png"):
        draw_comparison(curves, tmp_path / name, "digits")
    assert (tmp_path / "first.png").read_bytes().startswith(PNG)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "again.png").read_bytes()


@pytest.mark.parametrize("blocks", [1, 3])
def test_an_allocation_is_drawn_with_clients_that_missed_rounds(tmp_path, blocks):
    columns = ["experience", "round", "client", "block", "trains", "speed"]
    cells = [(e, r, c, k, (r + c + k) % 2 == 0, 1 / (1 + c)) for e in (0, 1) for r in (0, 1) for c in range(3 - r)
             for k in range(blocks)]  # fmt: skip
    table = pd.DataFrame(cells, columns=columns)
    for name in ("first.png", "again.png"):
        draw_allocation(table, tmp_path / name, "fedbe on digits")
    assert (tmp_path / "first.png").read_bytes().startswith(PNG)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "again.png").read_bytes()
