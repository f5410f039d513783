"""What is written into figures and pages comes back, and does not change what they show."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from metrics import provenance
from metrics.plots import draw_accuracy, draw_comparison, draw_matrix

ABOUT = {"digest": "ab" * 32, "method": "fedavg", "seed": 0, "git_commit": None, "note": 'ä "quoted" <&> 学'}


@pytest.fixture
def frame():
    cells = [(a, b) for a in range(-1, 3) for b in range(3)]
    rows = [
        {"model": "global", "client": -1, "trained": a, "tested": b, "accuracy": 0.3, "samples": 9} for a, b in cells
    ]
    return pd.DataFrame(rows)


def test_metadata_survive_in_every_kind_of_file(tmp_path):
    for name, metadata in (("a.png", provenance.png(ABOUT)), ("a.svg", provenance.svg(ABOUT))):
        Figure((1, 1)).savefig(tmp_path / name, metadata=metadata)
        assert provenance.read(tmp_path / name) == ABOUT
    (tmp_path / "a.html").write_text(f"<html><head>{provenance.html(ABOUT)}</head></html>", encoding="utf-8")
    assert provenance.read(tmp_path / "a.html") == ABOUT


@pytest.mark.parametrize("draw", [draw_accuracy, draw_matrix])
def test_a_figure_shows_the_same_with_and_without(frame, tmp_path, draw):
    draw(frame, "global", "title", tmp_path / "with.png", ABOUT)
    draw(frame, "global", "title", tmp_path / "again.png", ABOUT)
    draw(frame, "global", "title", tmp_path / "without.png")
    assert provenance.read(tmp_path / "with.png") == ABOUT
    assert provenance.read(tmp_path / "without.png") is None
    assert (tmp_path / "with.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    shown = [np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("with", "without")]
    assert np.array_equal(*shown)


def test_a_comparison_has_all_its_runs(tmp_path):
    curve = pd.DataFrame({"experience": [0, 1], "average_accuracy": [0.5, 0.4]})
    about = {"stream": "digits", "runs": [{**ABOUT, "name": f"digits/fedavg/seed-{seed}"} for seed in range(200)]}
    draw_comparison({"fedavg": [curve]}, tmp_path / "all.png", "title", about)
    assert provenance.read(tmp_path / "all.png") == about


def test_files_without_any_or_that_are_damaged_say_nothing(tmp_path):
    Figure((1, 1)).savefig(tmp_path / "plain.svg")
    for name, data in (("broken.png", b"\x89PNG"), ("broken.svg", b"<svg"), ("plain.html", b"<html>"), ("a.txt", b"")):
        (tmp_path / name).write_bytes(data)
    for path in tmp_path.iterdir():
        assert provenance.read(path) is None
