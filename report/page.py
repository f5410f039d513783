"""The report: all results as one HTML page that needs nothing else, and the same tables as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from metrics import comparison, provenance, task_measures
from metrics.accuracy import experiences
from metrics.comparison import COLUMNS, FAIRNESS
from metrics.task_measures import task_columns
from metrics.time_comparison import OverTime, over_time

from . import description, figures, tables
from .claims import Finding
from .front import BYTES, Point, accuracy_metric, in_devices_time, points
from .results import Run, Stream
from .templating import commit, templates


@dataclass(frozen=True)
class Picture:
    """A figure of the page: one drawing or several small ones; the caption says what is to be seen."""

    svgs: list[Markup]
    caption: str


@dataclass(frozen=True)
class Section:
    """A stream as the templates take it."""

    stream: Stream
    sentence: str
    parameters: list[tuple[str, str]]
    warnings: list[str]
    accuracies: list[tables.Table]
    fairness: tables.Table
    tasks: tables.Table
    times: OverTime | None
    pictures: dict[str, Picture]

    @property
    def name(self) -> str:
        return self.stream.name

    def anchor(self, method: str = "") -> str:
        """The id of a stream's section, or of a method's runs in it."""
        return f"runs/{quote(self.name, safe='')}/{quote(method, safe='')}" if method else f"stream/{quote(self.name)}"


def sections(streams: Sequence[Stream], results: Path) -> list[Section]:
    """What the page says of each stream.

    Args:
        streams: `report.results.read`.
        results: where they were read from.
    """
    return [_section(stream, results, f"figure{number}") for number, stream in enumerate(streams)]


def _section(stream: Stream, results: Path, name: str) -> Section:
    return Section(
        stream,
        description.sentence(stream),
        description.parameters(stream),
        description.warnings(stream),
        [tables.means(stream, COLUMNS, "Mean ± standard deviation over seeds"), *tables.compared(stream, COLUMNS)],
        tables.means(stream, FAIRNESS, "Accuracy of clients on their own test data"),
        tables.means(stream, task_columns(stream.table), "Each task in its own measures"),
        next(iter(over_time(results, stream.frame)), None),
        _pictures(stream, name),
    )


def _pictures(stream: Stream, name: str) -> dict[str, Picture]:
    """Those for which there is something to see, by name."""
    found = {}
    if max(experiences(run.matrix) for run in stream.every) > 1:
        band = ", with a band of one standard deviation over seeds" if len({*stream.frame["seed"]}) > 1 else ""
        found["accuracy"] = figures.draw_accuracy(stream, f"{name}a"), f"Average accuracy over experiences{band}."
        found["forgetting"] = (
            figures.draw_matrices(stream, f"{name}m"),
            "Accuracy on each experience (column) after each experience (row) in %, mean over seeds: forgetting shows "
            "as a column that darkens downwards; above the diagonal is what was not learnt yet.",
        )
    for key, at, axis, cost in (
        ("bytes", points(stream, BYTES), "MB up and down, all clients", "bytes"),
        ("time", in_devices_time(stream), "simulated time (forward passes of one block)", "simulated time"),
    ):
        if len(at) > 1 and any(point.cost > 0 for point in at.values()):
            found[key] = figures.draw_front(stream, at, axis, f"{name}{key[0]}"), _about_front(stream, at, cost)
    if "personalisation_mean" in stream.table:
        found["clients"] = (
            figures.draw_clients(stream, f"{name}c"),
            "Accuracy of every client on its own test data: a dot a client (mean over seeds), a bar their mean. The "
            "nearer the dots, the fairer.",
        )
    # What matplotlib wrote; it has escaped the names in it.
    return {
        key: Picture([Markup(svg) for svg in ([drawn] if isinstance(drawn, str) else drawn)], caption)
        for key, (drawn, caption) in found.items()
    }


def _about_front(stream: Stream, at: Mapping[str, Point], cost: str) -> str:
    which = "on own test data" if accuracy_metric(stream) != "final_average_accuracy" else "after the last experience"
    spread = ", one standard deviation over seeds each way" if len({*stream.frame["seed"]}) > 1 else ""
    free = any(point.cost == 0 for point in at.values())
    return (
        f"Accuracy {which} against {cost}{spread}. Ringed and joined: not dominated, no other method costs as little "
        "and is as accurate, and better in one of the two."
        + " Horizontal lines: methods for which it costs nothing."
        * free
    )


def to_html(found: Sequence[Section], findings: Sequence[Finding] = (), top: str = "..") -> str:
    """The page: no script, no other file, no address outside.

    Args:
        found: `sections`.
        findings: the claims of the papers and their verdicts; empty: the page has no such section.
        top: the project's folder, seen from that of the page.
    """
    return templates(html=True).get_template("report.html.j2").render(**_context(found, findings, top))


def to_markdown(found: Sequence[Section], findings: Sequence[Finding] = (), top: str = "..") -> str:
    """The tables of `to_html` as Markdown, without figures."""
    text = templates(html=False).get_template("report.md.j2").render(**_context(found, findings, top))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _context(found: Sequence[Section], findings: Sequence[Finding], top: str) -> dict[str, Any]:
    every = [run for section in found for run in section.stream.every]
    return {
        "sections": found,
        "findings": findings,
        "claims": [list(places) for _, places in groupby(findings, lambda each: (each.paper, each.claim))],
        "runs": len(every),
        "methods": len({run.method for run in every}),
        "commits": sorted({commit(run) for run in every}),
        "versions": sorted({_versions(run) for run in every}),
        "provenance": Markup(provenance.html({"runs": [_origin(run) for run in every]})),
        "top": top,
        "legend": comparison.LEGEND,
        "task_legend": task_measures.LEGEND,
    }


def _origin(run: Run) -> dict[str, Any]:
    return {"name": "/".join(run.folder.parts[-3:]), **provenance.origin(run.about)}


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(run.about.get("versions", {}).items()))
