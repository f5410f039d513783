"""The table of claims for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from .claims import Finding, Verdict

COLOURS = {Verdict.REPRODUCED: "green", Verdict.PARTLY: "yellow", Verdict.NOT: "red"}


def to_rich(findings: Sequence[Finding]) -> Table:
    shown = Table(show_lines=True)
    for heading in ("paper", "claim", "where", "verdict", "measured"):
        shown.add_column(heading, overflow="fold")
    for each in findings:
        verdict = f"[{COLOURS.get(each.verdict, 'dim')}]{each.said}[/]"
        shown.add_row(each.paper, each.claim, each.place, verdict, "\n".join(filter(None, [each.found, each.why])))
    return shown
