"""The report's figures as SVG to be put into a page: the same text for the same results, in the page's own colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from metrics import accuracy
from metrics.personalisation import own_accuracy
from metrics.plots import COLOURS, DASHES, MARKERS, plot_comparison, styled

from .front import Point, front
from .results import Stream

WIDTH = 4.8  # inches: little more than a phone is wide, so that the text of a figure stays readable there
INK = "#000001"  # becomes the colour of the page's text; black is left for the numbers in heat maps
SVG = {
    "svg.fonttype": "none",  # text stays text: small, and it can be searched and read aloud
    "font.family": "sans-serif",
    "text.parse_math": False,  # a name is a name, whatever signs are in it
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
NUMBERS_UP_TO = 6  # experiences: in small multiples there is no room for more
HEAT = "cividis"
COLUMNS = 3  # of a legend
LONG = 14  # signs in a name, of which so many columns do not find room


class Drawing:
    """A figure whose `svg` is there once it is drawn."""

    svg = ""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure((width, height), layout="constrained")


@contextmanager
def drawing(name: str, height: float, width: float = WIDTH) -> Iterator[Drawing]:
    """A figure of so many inches; `name`, unique in its page, keeps its ids apart from those of other figures."""
    with styled(**SVG, **{"svg.hashsalt": name}):
        drawn = Drawing(width, height)
        yield drawn
        buffer, nothing = io.StringIO(), dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawn.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        drawn.svg = _inline(buffer.getvalue(), name, width)


def _inline(text: str, name: str, width: float) -> str:
    """A file of its own made part of a page: without namespaces, in the page's colours, with ids of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", text)
    text = re.sub(
        r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" style="max-width:{width}in">', text, count=1
    )
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", text).replace("xlink:href", "href")
    return text.replace(INK, "currentColor").replace("#000000", "currentColor").strip()


def look(stream: Stream, method: str) -> tuple[str, object, str]:
    """A method's colour, dashes and marker, the same in all figures of a stream."""
    place = list(stream.runs).index(method)
    return tuple(kind[place % len(kind)] for kind in (COLOURS, DASHES, MARKERS))


def draw_accuracy(stream: Stream, name: str) -> str:
    """Average accuracy so far over the experiences, mean over seeds with a band of one std."""
    rows = -(-len(stream.runs) // COLUMNS)
    with drawing(name, 2.4 + 0.2 * rows) as drawn:
        axes = drawn.figure.subplots()
        plot_comparison(axes, {method: [run.course for run in runs] for method, runs in stream.runs.items()})
        axes.set_ylabel("average accuracy so far (%)")
        _legend(drawn.figure, axes)
    return drawn.svg


def draw_matrices(stream: Stream, name: str) -> list[str]:
    """The accuracy matrix of every main model, mean over seeds, the finally best method first; the last is the key."""
    found = []
    for number, method in enumerate(stream.table.index):
        R = np.mean([accuracy.matrix(run.matrix, run.main) for run in stream.runs[method]], axis=0)
        with drawing(f"{name}{number}", 1.75, width=1.6) as drawn:
            axes = drawn.figure.subplots()
            _heat_map(axes, 100 * R)
            axes.set_title(method, fontsize=min(9, 180 / len(method)))
        found.append(drawn.svg)
    with drawing(f"{name}key", 0.6, width=1.6) as drawn:
        bar = drawn.figure.colorbar(
            ScalarMappable(Normalize(0, 100), HEAT), cax=drawn.figure.subplots(), orientation="horizontal"
        )
        bar.set_label("accuracy (%)")
        bar.outline.set_visible(False)
    return [*found, drawn.svg]


def _heat_map(axes: Axes, cells: np.ndarray) -> None:
    image = axes.pcolormesh(cells, cmap=HEAT, vmin=0, vmax=100, edgecolors="face", linewidth=0.1)
    if max(cells.shape) > 2 * NUMBERS_UP_TO:
        image.set_rasterized(True)  # thousands of paths would be megabytes
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    for axis, count in ((axes.xaxis, cells.shape[1]), (axes.yaxis, cells.shape[0])):
        marks = range(0, count, -(-count // NUMBERS_UP_TO))
        axis.set_ticks([mark + 0.5 for mark in marks], [str(mark) for mark in marks])
        axis.set_tick_params(length=0)
    if max(cells.shape) <= NUMBERS_UP_TO:
        for (row, column), value in np.ndenumerate(cells):
            text, colour = ("–", INK) if np.isnan(value) else (f"{value:.0f}", "white" if value < 50 else "black")
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, fontsize=7)


def draw_front(stream: Stream, points: Mapping[str, Point], axis: str, name: str) -> str:
    """Accuracy against a cost: a point a method with one std each way; who is on the front is ringed and joined.

    Methods without cost are lines: nothing could be better than free.
    """
    paid = {method: point for method, point in points.items() if point.cost > 0}
    best = front(paid)
    rows = -(-len(points) // COLUMNS)
    with drawing(name, 2.6 + 0.2 * rows) as drawn:
        axes = drawn.figure.subplots()
        costs = [point.cost for point in paid.values()]
        if max(costs) > 20 * min(costs):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(0, 1.08 * max(costs))
        for method in (each for each in stream.table.index if each in points):
            point, (colour, dashes, marker) = points[method], look(stream, method)
            if method in paid:
                spread = {"xerr": point.cost_std, "yerr": 100 * point.accuracy_std, "elinewidth": 1}
                axes.errorbar(point.cost, 100 * point.accuracy, **spread, color=colour, marker=marker, label=method)
            else:
                axes.axhline(100 * point.accuracy, color=colour, linestyle=dashes, linewidth=1, label=method)
        where = [(paid[method].cost, 100 * paid[method].accuracy) for method in best]
        axes.step(*zip(*where, strict=True), where="post", color="grey", linewidth=1, zorder=0)
        rings = {"s": 120, "facecolors": "none", "edgecolors": "grey"}
        axes.scatter(*zip(*where, strict=True), **rings, label="not dominated")
        axes.set(xlabel=axis, ylabel="accuracy (%)")
        axes.margins(y=0.08)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        _name(axes, dict(zip(best, where, strict=True)))
        _legend(drawn.figure, axes)
    return drawn.svg


def _name(axes: Axes, places: Mapping[str, tuple[float, float]]) -> None:
    """Names inside the axes, beside their points, the most accurate first; of two that would touch only that one's."""
    low, high = (axes.transData.transform(corner) for corner in zip(axes.get_xlim(), axes.get_ylim(), strict=True))
    named: list[float] = []
    for method, place in reversed(places.items()):
        across, up = (axes.transData.transform(place) - low) / (high - low)
        if any(abs(up - other) < 0.1 for other in named):
            continue
        named.append(up)
        side, offset = ("right", (-8, 6)) if across > 0.4 else ("left", (8, -11))
        axes.annotate(method, place, offset, textcoords="offset points", ha=side, fontsize=8, in_layout=False)


def draw_clients(stream: Stream, name: str) -> str:
    """Every client's accuracy on its own test data, mean over seeds: a row a method, a dot a client, a bar the mean."""
    first = {method: stream.runs[method][0] for method in stream.table.index}
    methods = [method for method, run in first.items() if len(own_accuracy(run.matrix, run.main))]
    with drawing(name, 0.7 + 0.27 * len(methods)) as drawn:
        axes = drawn.figure.subplots()
        for number, method in enumerate(methods):
            seeds = pd.concat([own_accuracy(run.matrix, run.main) for run in stream.runs[method]])
            each = seeds.groupby(level=0).mean()  # by client
            colour, _, marker = look(stream, method)
            axes.scatter(100 * each, np.full(len(each), number), s=26, color=colour, marker=marker, alpha=0.6)
            axes.plot([100 * each.mean()] * 2, [number - 0.35, number + 0.35], color=INK, linewidth=1.5)
        axes.set(xlabel="accuracy of a client on its own test data (%)", ylim=(len(methods) - 0.4, -0.6))
        axes.set_yticks(range(len(methods)), methods)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
    return drawn.svg


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = COLUMNS if max(map(len, labels), default=0) <= LONG else COLUMNS - 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.6)
