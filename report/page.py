"""The report: all results as one HTML page that needs nothing else, and the same tables as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from metrics import comparison, task_measures
from metrics.accuracy import experiences
from metrics.comparison import COLUMNS, FAIRNESS, PERCENT
from metrics.task_measures import task_columns
from metrics.time_comparison import OverTime, over_time

from . import description, figures, tables
from .front import BYTES, accuracy_metric, in_devices_time, points
from .results import Run, Stream

MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]|#~$])")
# By how they begin.
VERDICTS = {"reproduced": "good", "partly": "part", "not testable": "open", "not run": "open", "not": "bad"}


class Finding(Protocol):
    """A claim of a paper and what became of it: every attribute is shown as text."""

    paper: str
    claim: str
    place: str
    tested: str
    found: str
    verdict: str
    why: str


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
    which = "on own test data" if accuracy_metric(stream) != "final_average_accuracy" else "after the last experience"
    said = (
        f"Accuracy {which} against {{}}, one standard deviation over seeds each way. Ringed and joined: not dominated, "
        "no other method is both cheaper and more accurate. Horizontal lines: methods for which it costs nothing."
    )
    for key, at, axis, cost in (
        ("bytes", points(stream, BYTES), "MB up and down, all clients", "bytes"),
        ("time", in_devices_time(stream), "simulated time (forward passes of one block)", "simulated time"),
    ):
        if len(at) > 1 and any(point.cost > 0 for point in at.values()):
            found[key] = figures.draw_front(stream, at, axis, f"{name}{key[0]}"), said.format(cost)
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


def to_html(found: Sequence[Section], findings: Sequence[Finding] = (), top: str = "..") -> str:
    """The page: no script, no other file, no address outside.

    Args:
        found: `sections`.
        findings: the claims of the papers and their verdicts; empty: the page has no such section.
        top: the project's folder, seen from that of the page.
    """
    return _environment(True).get_template("report.html.j2").render(**_context(found, findings, top))


def to_markdown(found: Sequence[Section], findings: Sequence[Finding] = (), top: str = "..") -> str:
    """The tables of `to_html` as Markdown, without figures."""
    text = _environment(False).get_template("report.md.j2").render(**_context(found, findings, top))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _context(found: Sequence[Section], findings: Sequence[Finding], top: str) -> dict[str, Any]:
    every = [run for section in found for run in section.stream.every]
    return {
        "sections": found,
        "findings": findings,
        "runs": len(every),
        "methods": len({run.method for run in every}),
        "commits": sorted({commit(run) for run in every}),
        "versions": sorted({_versions(run) for run in every}),
        "top": top,
        "legend": comparison.LEGEND,
        "task_legend": task_measures.LEGEND,
    }


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(run.about.get("versions", {}).items()))


def commit(run: Run) -> str:
    """Seven signs of the commit, with + where files differed from it; – where there was no git."""
    found = run.about.get("git_commit")
    return (found[:7] + ("" if run.about.get("git_clean") else "+")) if found else "–"


def verdict_class(verdict: object) -> str:
    """How a verdict is coloured."""
    text = str(verdict).lower()
    return next((kind for begin, kind in VERDICTS.items() if text.startswith(begin)), "open")


def link(run: Run, top: str) -> str:
    """The folder of a run's results, seen from the page."""
    return f"{top}/" + quote("/".join(("results", *run.folder.parts[-3:]))) + "/"


def escaped(value: object) -> str:
    """Text that Markdown and the HTML in it take as it is, in a table's cell, too."""
    return MARKDOWN_SIGNS.sub(r"\\\1", html.escape(" ".join(str(value).split()), quote=False))


def as_code(value: object) -> str:
    """Code in a table's cell of Markdown: in HTML's own tag, since no sign ends that."""
    return f"<code>{escaped(value)}</code>"


def _environment(is_html: bool) -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=is_html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"md": escaped, "mdcode": as_code}
    found.globals |= {"commit": commit, "link": link, "verdict_class": verdict_class, "PERCENT": PERCENT}
    return found
