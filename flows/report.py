"""The report: `comparison/report.html` and `comparison/report.md`, of all results of the project.

python -m flows.report [STREAM]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from parameters import project_root
from report.page import Finding, sections, to_html, to_markdown
from report.record import findings as claimed
from report.results import read
from tasks.files import write_whole

from . import settings
from .commands import repeating


def write_report(root: Path, stream: str | None = None, findings: Sequence[Finding] | None = None) -> list[Path]:
    """Writes the report of the project in `root` and returns its files.

    Args:
        stream: of this one only; default all.
        findings: the papers' claims and what became of them; empty: the report has no such section. None: all claims,
            where at least one was tested here and the report is of all streams.
    Raises:
        InputError: there are no results, those of a run are not whole, or seeds of a method are different experiments.
    """
    results = root / "results"
    if findings is None:
        known = [] if stream else claimed(root)
        findings = known if any(each.measured for each in known) else []
    found = sections(read(results, stream, repeating(root)), results)
    files = {"report.html": to_html(found, findings), "report.md": to_markdown(found, findings)}
    folder = root / "comparison"
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        write_whole(folder / name, text.encode())
    return [folder / name for name in files]


if __name__ == "__main__":
    settings.apply()
    for path in write_report(project_root(), sys.argv[1] if len(sys.argv) > 1 else None):
        print(path.relative_to(project_root()))
