"""Where a figure or a page comes from, written into the file itself, so that a copy of it can still be traced.

What is written is an object of plain values under the key `fcl`: of one run its `ORIGIN`, of a comparison
`{"stream": ..., "runs": [...]}` with the `ORIGIN` of each run. PNG has it as a text chunk, SVG as its description,
HTML as a `<meta name="fcl">`. `read` finds it again, whatever the file is called and wherever it lies.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape, unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

KEY = "fcl"
# What names a run: digest of all its final states, what it ran, the digests of what it ran on, and the code.
ORIGIN = ("digest", "method", "stream", "seed", "parameter_digest", "stream_digest", "git_commit", "git_clean")
DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
META = re.compile(rf'<meta name="{KEY}" content="([^"]*)">')


def origin(run: Mapping[str, Any]) -> dict[str, Any]:
    """What names a run, of all that its run.json says; None for what an older run.json does not say."""
    return {name: run.get(name) for name in ORIGIN}


def png(about: Mapping[str, Any] | None) -> dict[str, str | None]:
    """`metadata` of matplotlib's `savefig(..., format="png")`. Its own, the version of matplotlib, is left out."""
    return {"Software": None} | ({KEY: json.dumps(about, sort_keys=True)} if about else {})


def svg(about: Mapping[str, Any] | None) -> dict[str, str | None]:
    """`metadata` of matplotlib's `savefig(..., format="svg")`. Date and creator are left out: they change the bytes."""
    found = {"Date": None, "Creator": None}
    return found | ({"Description": json.dumps({KEY: about}, sort_keys=True)} if about else {})


def html(about: Mapping[str, Any]) -> str:
    """The element for the head of a page."""
    return f'<meta name="{KEY}" content="{escape(json.dumps(about, sort_keys=True))}">'


def read(path: Path) -> dict[str, Any] | None:
    """What is written into a PNG, SVG or HTML file; None: nothing, or it is none of these."""
    readers = {".png": _read_png, ".svg": _read_svg, ".html": _read_html}
    reader = readers.get(path.suffix.lower())
    try:
        found = json.loads(reader(path) or "null") if reader else None
    except (OSError, ValueError, SyntaxError):  # not such a file, whatever its name
        return None
    return found if isinstance(found, dict) and _known(found) else None


def _known(found: Mapping[str, Any]) -> bool:
    """Whether it is what this project writes: files come from anywhere."""
    runs = found.get("runs", [found])
    named = isinstance(runs, list) and all(isinstance(run, dict) for run in runs)
    if "runs" in found:
        names = [run.get("name") for run in runs] if named else []
        plain = all(isinstance(name, str) and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", name) for name in names)
        return named and plain and all("digest" in run for run in runs)
    return "stream_digest" in found or "digest" in found


def _read_png(path: Path) -> str | None:
    from PIL import Image

    with Image.open(path) as image:
        return getattr(image, "text", {}).get(KEY)


def _read_svg(path: Path) -> str | None:
    for each in ElementTree.parse(path).iter(DESCRIPTION):
        found = json.loads(each.text or "null")
        if isinstance(found, dict) and KEY in found:
            return json.dumps(found[KEY])
    return None


def _read_html(path: Path) -> str | None:
    found = META.search(path.read_text(encoding="utf-8"))
    return unescape(found[1]) if found else None
