"""What the templates ask for: text escaped, and a run's commit, link and verdict as they are shown."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from urllib.parse import quote

import jinja2

from .results import Run

MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]|#~$])")
# By how they begin.
VERDICTS = {"reproduced": "good", "partly": "part", "not testable": "open", "not run": "open", "not": "bad"}


def commit(run: Run) -> str:
    """Seven signs of the commit, with + where files differed from it; – where there was no git."""
    found = run.about.get("git_commit")
    return (found[:7] + ("+" if run.about.get("git_clean") is False else "")) if found else "–"


def verdict_class(verdict: object) -> str:
    """How a verdict is coloured."""
    text = str(verdict).lower()
    return next((kind for begin, kind in VERDICTS.items() if text.startswith(begin)), "open")


def link(run: Run, top: str) -> str:
    """The folder of a run's results, seen from the page."""
    return f"{top}/" + quote("/".join(("results", *run.folder.parts[-3:]))) + "/"


def escaped(value: object) -> str:
    """Text that Markdown and the HTML in it take as it is, in a table's cell, too."""
    return MARKDOWN_SIGNS.sub(r"\\\1", escape(" ".join(str(value).split()), quote=False))


def as_code(value: object) -> str:
    """Code in a table's cell of Markdown: in HTML's own tag, since no sign ends that."""
    return f"<code>{escaped(value)}</code>"


def templates(*, html: bool) -> jinja2.Environment:
    """The templates of this package; in HTML everything is escaped, in Markdown what goes through a filter."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"md": escaped, "mdcode": as_code}
    found.globals |= {"commit": commit, "link": link, "verdict_class": verdict_class}
    return found
