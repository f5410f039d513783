"""A picture of a stream: how many samples of each class every client trains on, experience by experience."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from streams.stream import Stream

ACROSS = 5  # panels in a row
COLOURS = LinearSegmentedColormap.from_list("counts", ["#ffffff", "#9ecae1", "#2171b5", "#08306b"])
NOT_HERE = "#e4e4e4"  # the client does not meet the class in this experience


def draw(stream: Stream, path: Path) -> None:
    """Write a PNG with one panel per experience: clients down, its classes across, colour for training samples."""
    counts = _counts(stream)
    shown = [np.flatnonzero(~np.isnan(panel).all(axis=0)) for panel in counts]
    across = min(ACROSS, stream.experiences)
    down = -(-stream.experiences // across)
    width = across * float(np.clip(0.17 * max(map(len, shown)), 1.4, 4.5)) + 1.6
    height = down * (float(np.clip(0.16 * stream.clients, 1.1, 6.0)) + 0.6) + 0.8
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).flat
    # Square root: under a skewed partition most cells hold few samples, and few must look unlike none.
    scale = PowerNorm(0.5, vmin=0, vmax=max(1, np.nanmax(counts)))
    for experience, (panel, classes) in enumerate(zip(panels, shown, strict=False)):
        heat = panel.imshow(counts[experience][:, classes], COLOURS, scale, aspect="auto", interpolation="none")
        panel.set_facecolor(NOT_HERE)
        panel.set_title(f"experience {experience}", fontsize=9)
        step = -(-len(classes) // 10)
        panel.set_xticks(range(0, len(classes), step), classes[::step])
        panel.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        panel.tick_params(labelsize=7, length=2)
    for panel in list(figure.axes)[stream.experiences :]:
        panel.set_axis_off()
    own = stream.parameters.order == "own"
    figure.supxlabel("class" + " (grey: not in this experience of the client)" * own, fontsize=9)
    figure.supylabel("client", fontsize=9)
    figure.suptitle(f"{stream.name}  ·  {stream.digest[:12]}", fontsize=11)
    bar = figure.colorbar(heat, ax=figure.axes, fraction=0.04, pad=0.01, aspect=15 * height / 2)
    bar.set_label("training samples", fontsize=9)
    bar.ax.tick_params(labelsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None})


def _counts(stream: Stream) -> np.ndarray:
    """(experiences, clients, classes) training samples; NaN where the client does not meet the class."""
    counts = np.full((stream.experiences, stream.clients, stream.classes), np.nan)
    for experience in range(stream.experiences):
        for client in range(stream.clients):
            classes = list(stream.classes_of(client, experience))
            held = np.bincount(stream.labels[stream.train(client, experience)], minlength=stream.classes)
            counts[experience, client, classes] = held[classes]
    return counts
