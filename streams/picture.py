"""A picture of a stream: how many samples of each class (task) every client trains on, experience by experience."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from streams import domain
from streams.stream import Stream

ACROSS = 5  # panels in a row
ACROSS_WIDE = 3  # of panels with more than WIDE classes
WIDE = 30
MANY = 60  # clients; if some are absent at times, more of them are shown in the order in which they join
LINES = 400  # about the lines of pixels of a panel
COLOURS = LinearSegmentedColormap.from_list("counts", ["#ffffff", "#9ecae1", "#2171b5", "#08306b"])
NOT_HERE = "#e4e4e4"  # the client does not meet the class in this experience
ABSENT = {"facecolor": "#f7f3ea", "edgecolor": "#b9ab8a", "linewidth": 0, "hatch": "////"}
LETTER = 0.09  # inches, about the width of a letter of the title
EXAMPLE = 30  # points, the side of an example image


def draw(stream: Stream, path: Path) -> None:
    """Write a PNG with one panel per experience: clients down, its classes across, colour for training samples.

    Of a multi-task stream tasks are across, by their names. Absent clients are hatched. Where the domain changes, a
    panel shows an example of it, the same sample in each. The stream's name and digest are in the file's metadata.
    """
    what, names, column_of = _columns(stream)
    counts = _counts(stream, column_of)
    shown = [np.unique(column_of[list(stream.classes_in(t))]).tolist() for t in range(stream.experiences)]
    order = np.arange(stream.clients)
    if stream.clients > MANY and stream.parameters.growth:
        order = np.lexsort((stream.plan.last, stream.plan.first))
    widest = max(map(len, shown))
    across = min(ACROSS_WIDE if widest > WIDE else ACROSS, stream.experiences)
    down = -(-stream.experiences // across)
    about = stream.parameters
    title = f"{stream.name}  ·  {about.scenario}, {about.partition.kind}  ·  {stream.digest[:12]}"
    width = max(across * float(np.clip(0.17 * widest, 1.6, 4.5)) + 1.6, LETTER * len(title))
    height = down * (float(np.clip(0.16 * stream.clients, 1.1, 6.0)) + 0.6 + 0.3 * bool(stream.parameters.domain)) + 0.8
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).flat
    # Square root: under a skewed partition most cells hold few samples, and few must look unlike none.
    scale = PowerNorm(0.5, vmin=0, vmax=max(1, np.nanmax(counts)))
    for experience, (panel, classes) in enumerate(zip(panels, shown, strict=False)):
        # With more clients than lines of pixels, a line is the mean colour of its clients.
        heat = panel.imshow(
            counts[experience][np.ix_(order, classes)], COLOURS, scale, aspect="auto", interpolation_stage="rgba",
            interpolation="antialiased" if stream.clients > LINES else "none",
        )  # fmt: skip
        panel.set_facecolor(NOT_HERE)
        _mark_absent(panel, ~_there(stream, experience)[order])
        _entitle(panel, stream, experience)
        step = -(-len(classes) // 10)
        panel.set_xticks(range(0, len(classes), step), [names[column] for column in classes[::step]])
        panel.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        panel.tick_params(labelsize=7, length=2)
        if stream.layout is not None:
            panel.tick_params(axis="x", rotation=45)
    for panel in list(figure.axes)[stream.experiences :]:
        panel.set_axis_off()
    there = [_there(stream, experience) for experience in range(stream.experiences)]
    keys = []
    if any(np.isnan(counts[t][np.ix_(there[t], classes)]).any() for t, classes in enumerate(shown)):
        keys.append("grey: not met by the client then")
    if not np.all(there):
        keys.append("hatched: client absent")
    figure.supxlabel(f"{what} ({'; '.join(keys)})" if keys else what, fontsize=9)
    joined = not np.array_equal(order, np.arange(stream.clients))
    figure.supylabel("clients, in the order in which they join and leave" if joined else "client", fontsize=9)
    figure.suptitle(title, fontsize=11)
    bar = figure.colorbar(heat, ax=figure.axes, fraction=0.04, pad=0.01, aspect=15 * height / 2)
    bar.set_label("training samples", fontsize=9)
    bar.ax.tick_params(labelsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    # As `metrics.provenance` writes it into the figures of results.
    origin = json.dumps({"stream": stream.name, "stream_digest": stream.digest}, sort_keys=True)
    FigureCanvasAgg(figure).print_png(str(path), metadata={"Software": None, "fcl": origin})


def _there(stream: Stream, experience: int) -> np.ndarray:
    """(clients,) bool."""
    return stream.plan.present(np.arange(stream.clients), experience)


def _columns(stream: Stream) -> tuple[str, list[str], np.ndarray]:
    """What is across, a class or a task; the columns' names; and (classes,) the column of each label."""
    if stream.layout is None:
        return "class", list(map(str, range(stream.classes))), np.arange(stream.classes)
    return "task", list(stream.patterns.names), stream.patterns.of_label


def _counts(stream: Stream, column_of: np.ndarray) -> np.ndarray:
    """(experiences, clients, columns) training samples; NaN where the client does not meet the class."""
    columns = int(column_of.max()) + 1
    counts = np.full((stream.experiences, stream.clients, columns), np.nan, np.float32)
    for experience in range(stream.experiences):
        met = stream.plan.within(slice(None), experience)
        for client in np.flatnonzero(met.any(axis=1)):
            held = np.bincount(column_of[stream.labels_of(stream.train(client, experience))], minlength=columns)
            there = np.unique(column_of[met[client]])
            counts[experience, client, there] = held[there]
    return counts


def _mark_absent(panel: Axes, absent: np.ndarray) -> None:
    """Hatch the lines (clients,) that are absent, neighbours as one."""
    change = np.diff(absent.astype(int), prepend=0, append=0)
    starts, ends = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
    left, right = panel.get_xlim()
    for start, end in zip(starts, ends, strict=True):
        panel.add_patch(Rectangle((left, start - 0.5), right - left, end - start, **ABSENT))


def _entitle(panel: Axes, stream: Stream, experience: int) -> None:
    """Number of the experience, and where all clients are in one domain its name and an example."""
    title = f"experience {experience}"
    about = stream.parameters
    if about.domain is None:
        panel.set_title(title, fontsize=9)
        return
    if about.order == "own":
        panel.set_title(f"{title}\na client's own domain", fontsize=8, loc="left")
        return
    number = int(stream.plan.domain_of(0, experience))
    panel.set_title(f"{title}\n{domain.title(number, about)}", fontsize=8, loc="left")
    sample = stream.samples_of(stream.test(None, 0)[:1])
    image = domain.apply(stream.inputs[sample], sample, np.array([number]), about)[0].transpose(1, 2, 0)
    image = np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image[..., :3]
    shown = OffsetImage(image, zoom=EXAMPLE / max(image.shape), interpolation="nearest")
    panel.add_artist(AnnotationBbox(shown, (1, 1), xycoords="axes fraction", box_alignment=(1, -0.1), frameon=False))
