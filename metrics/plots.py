"""Figures for papers: readable in grey, safe for the colour-blind, and the same bytes for the same numbers.

Every function takes `about`, where the numbers come from, and writes it into the PNG (`metrics.provenance`). It names
the commit, so the bytes of two figures of the same numbers may differ; their pixels do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from metrics import accuracy, provenance

STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.dpi": 200,
}
# Okabe and Ito's palette without its yellow, which vanishes on white; dashes and markers tell methods apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
DASHES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), ":")
MARKERS = "osD^vPX*<>p"
About = Mapping[str, Any] | None
NUMBERS_UP_TO = 10  # experiences: beyond, the numbers in a heat map are too small to read

_style = Lock()  # matplotlib's style is one per process, and tasks may draw in threads


@contextmanager
def styled(**settings: object) -> Iterator[None]:
    """The project's style for what is drawn inside, with matplotlib `settings` over it, one drawing at a time."""
    with _style, style.context(["default", STYLE, settings]):
        yield


@contextmanager
def _axes(path: Path, width: float, height: float, title: str, about: About) -> Iterator[Axes]:
    """Axes of a figure of so many inches, written to `path` as PNG in the end, whatever the user's own style is."""
    with styled():
        figure = Figure((width, height), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        yield axes
        figure.savefig(path, format="png", metadata=provenance.png(about))


def draw_accuracy(frame: pd.DataFrame, main: str, title: str, path: Path, about: About = None) -> None:
    """Accuracy over experiences: `A_a` thick, and each experience from when it was learnt, thin."""
    R = accuracy.matrix(frame, main)
    course = range(len(R))
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(R)))
    with _axes(path, 5.2, 3.4, title, about) as axes:
        for b in course:
            axes.plot(course[b:], R[b:, b], color=shades[b], marker=".", linewidth=0.9)
            axes.annotate(str(b), (b, R[b, b]), (0, 6), textcoords="offset points", ha="center", fontsize=7)
        mean = [accuracy.average_accuracy(R, a) for a in course]
        axes.plot(course, mean, color="black", marker="o", linewidth=2.5, label="average so far, $A_a$")
        axes.plot([], [], color=shades[0], marker=".", linewidth=0.9, label="one experience since learnt")
        _percent_over_experiences(axes)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def draw_matrix(frame: pd.DataFrame, main: str, title: str, path: Path, about: About = None) -> None:
    """Heat map of `R` under the untrained row; the stairs part what was learnt (below) from zero-shot (above)."""
    R = accuracy.matrix(frame, main)
    cells = np.vstack([accuracy.untrained(frame, main), R])
    rows, columns = cells.shape
    with _axes(
        path, max(3.2, 1.6 + 0.42 * min(columns, 14)), max(2.6, 1.1 + 0.36 * min(rows, 15)), title, about
    ) as axes:
        axes.set_facecolor("0.85")  # a cell nobody measured
        image = axes.imshow(100 * cells, cmap="cividis", vmin=0, vmax=100, aspect="auto")
        axes.figure.colorbar(image, label="accuracy (%)")
        corners = np.arange(len(R) + 1).repeat(2)
        axes.plot(corners[1:-1] - 0.5, corners[:-2] + 0.5, color="white", linewidth=2)
        if max(R.shape) <= NUMBERS_UP_TO:
            for (row, column), value in np.ndenumerate(cells):
                text = "–" if np.isnan(value) else f"{100 * value:.0f}"
                colour = "white" if value < 0.5 else "black"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
        every = -(-rows // 16)
        axes.set_yticks([0, *range(1, rows, every)], ["untrained", *range(0, rows - 1, every)])
        axes.set_xticks(range(0, columns, every))
        axes.set(xlabel="tested on experience", ylabel="trained up to experience")
        axes.grid(False)
        axes.spines[:].set_visible(False)


def draw_comparison(
    curves: Mapping[str, Sequence[pd.DataFrame]], path: Path, title: str = "", about: About = None
) -> None:
    """`A_a` of several methods: the mean over seeds and, from two seeds on, a band of one standard deviation.

    Args:
        curves: for each method one `over_experiences` frame per seed; the legend lists the finally best one first.
    """
    with _axes(path, 6.4, 3.4, title, about) as axes:
        plot_comparison(axes, curves)
        axes.set_ylabel("average accuracy $A_a$ (%)")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3.2)


def plot_comparison(axes: Axes, curves: Mapping[str, Sequence[pd.DataFrame]]) -> None:
    """The lines and bands of `draw_comparison`, labelled, without a legend."""
    spread = {name: _over_seeds(runs) for name, runs in curves.items()}
    for name in sorted(spread, key=lambda name: (-spread[name]["mean"].iloc[-1], name)):
        mean, std = spread[name]["mean"], spread[name]["std"]
        place = list(curves).index(name)  # a method keeps its colour whatever its rank
        colour, dashes, marker = (kind[place % len(kind)] for kind in (COLOURS, DASHES, MARKERS))
        axes.plot(mean, color=colour, linestyle=dashes, marker=marker, markersize=5, linewidth=1.6, label=name)
        axes.fill_between(mean.index, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
    _percent_over_experiences(axes)


def draw_over_time(courses: Mapping[str, pd.DataFrame], path: Path, title: str = "", about: About = None) -> None:
    """Accuracy over simulated time, one line a method, a marker where an experience ends.

    Args:
        courses: for each method its `metrics.time.mean_course`; the legend lists them in this order.
    """
    with _axes(path, 6.4, 3.4, title, about) as axes:
        for place, (name, course) in enumerate(courses.items()):
            colour, dashes, marker = (kind[place % len(kind)] for kind in (COLOURS, DASHES, MARKERS))
            ends = np.flatnonzero(course["experience"] != course["experience"].shift(-1))
            look = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 5, "linewidth": 1.6}
            axes.plot(course["time"], course["accuracy"], **look, markevery=ends.tolist(), label=name)
        axes.set(xlabel="simulated time (forward passes of one block)", ylabel="average accuracy so far (%)")
        axes.set(xlim=(0, None), ylim=(0, 1.04))
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3.2)


def draw_allocation(table: pd.DataFrame, path: Path, title: str = "", about: About = None) -> None:
    """Who trained which block when: a panel a block, from the bottom, and a row a client, from the fastest.

    A panel's title says in what share of the clients' turns the block was trained; lines part the experiences.

    Args:
        table: rows of experience, round, client, block, trains (bool) and speed, see `methods.fedbe`.
    """
    speeds = table.groupby("client")["speed"].first().sort_values(ascending=False)
    rounds = table[["experience", "round"]].drop_duplicates().sort_values(["experience", "round"])
    columns = pd.MultiIndex.from_frame(rounds)
    blocks = sorted(table["block"].unique())
    high = max(2.6, 1.2 + 0.14 * len(speeds))
    with _axes(path, 1.6 + 2.1 * len(blocks), high, "", about) as outer:
        figure = outer.figure
        outer.remove()
        figure.suptitle(f"{title}\nlight: trains the block, dark: does not, white: took no part", fontsize=9)
        panels = figure.subplots(1, len(blocks), sharey=True, squeeze=False)[0]
        for panel, block in zip(panels, blocks, strict=True):
            own = table[table["block"] == block].pivot(index="client", columns=["experience", "round"], values="trains")
            cells = own.reindex(index=speeds.index, columns=columns).astype(float).to_numpy()
            panel.imshow(cells, cmap="cividis", vmin=0, vmax=1, aspect="auto", interpolation="none")
            panel.set(title=f"block {block}: {np.nanmean(cells):.0%}", xlabel="round, over all experiences")
            for place in np.flatnonzero(rounds["round"].to_numpy() == 0)[1:]:
                panel.axvline(place - 0.5, color="white", linewidth=1)
            panel.grid(False)
        panels[0].set(ylabel="client: speed", yticks=range(len(speeds)))
        panels[0].set_yticklabels([f"{client}: {speed:.2f}" for client, speed in speeds.items()], fontsize=6)


def draw_replacements(table: pd.DataFrame, path: Path, title: str = "", about: About = None) -> None:
    """When whose personal model took what from the federation: a row a task and client, a dot a participation.

    Full where the task's components were replaced, open where they were kept; lines part the experiences.

    Args:
        table: rows of experience, round, client, task and replaced (bool), see `methods.tap`.
    """
    rounds = table[["experience", "round"]].drop_duplicates().sort_values(["experience", "round"])
    place = {tuple(each): number for number, each in enumerate(rounds.itertuples(index=False))}
    tasks = list(dict.fromkeys(table["task"]))
    ordered = sorted({(tasks.index(task), client) for task, client in zip(table["task"], table["client"], strict=True)})
    with _axes(path, 8.0, 1.2 + 0.2 * len(ordered), f"{title}\nfull: replaced, open: kept", about) as axes:
        for number, (task, client) in enumerate(ordered):
            own = table[(table["task"] == tasks[task]) & (table["client"] == client)]
            at = np.array([place[each] for each in zip(own["experience"], own["round"], strict=True)])
            full = own["replaced"].to_numpy(dtype=bool)
            colour = COLOURS[task % len(COLOURS)]
            axes.scatter(at[full], np.full(full.sum(), number), s=22, color=colour)
            axes.scatter(at[~full], np.full((~full).sum(), number), s=22, facecolors="none", edgecolors=colour)
        shares = table.groupby(["task", "client"])["replaced"].agg(["sum", "count"])
        counts = [shares.loc[(tasks[task], client)] for task, client in ordered]
        names = [f"{tasks[task]}, client {client}" for task, client in ordered]
        axes.set(xlabel="round, over all experiences", yticks=range(len(ordered)), ylim=(len(ordered) - 0.5, -0.5))
        axes.set_yticklabels(
            [f"{name}: {each['sum']} of {each['count']}" for name, each in zip(names, counts, strict=True)]
        )
        for number in [place[each] for each in place if each[1] == 0][1:]:
            axes.axvline(number - 0.5, color="grey", linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _over_seeds(runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Mean and std (ddof 1, NaN for one seed) of `A_a` by experience."""
    return pd.concat(runs).groupby("experience")["average_accuracy"].agg(["mean", "std"])


def _percent_over_experiences(axes: Axes) -> None:
    axes.set(xlabel="after experience", ylabel="accuracy (%)", ylim=(0, 1.04))
    axes.margins(x=0.05 if axes.dataLim.width else 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
