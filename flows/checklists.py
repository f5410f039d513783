"""Writes the reproducibility checklists of the four papers: `comparison/checklist-PAPER.md`.

python -m flows.checklists
"""

from __future__ import annotations

from pathlib import Path

from parameters import project_root
from report.checklist import PAPERS, checklist
from tasks.files import write_whole

from . import settings


def write_checklists(root: Path) -> list[Path]:
    """The files, one a paper; also where there is no run of its system, which it then says."""
    written = []
    for paper in PAPERS:
        path = root / "comparison" / f"checklist-{paper}.md"
        path.parent.mkdir(exist_ok=True)
        write_whole(path, checklist(paper, root).encode())
        written.append(path)
    return written


if __name__ == "__main__":
    settings.apply()
    for path in write_checklists(project_root()):
        print(path.relative_to(project_root()))
