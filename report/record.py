"""The verdicts once reached, kept beside the table of claims, so that a claim that is lost is noticed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from errors import InputError

from .claims import Finding, Verdict, judge
from .comparisons import Evidence
from .published import CLAIMS

RECORD = Path(__file__).with_name("recorded.json")


def findings(root: Path, record: Path | None = None) -> list[Finding]:
    """A finding for each claim and place: of the runs in the project's folder, or where there are none as recorded.

    Args:
        root: the project's folder, with `results` and, for CIFAR-100, `paper/results`; or `paper` itself.
    """
    if root.name == "paper" and (root.parent / "params.yaml").exists():
        root = root.parent
    now = judge(CLAIMS, {folder: Evidence(root / folder / "results") for folder in ("", "paper")})
    return [_as_recorded(each, _read(record or RECORD)) for each in now]


def _as_recorded(finding: Finding, kept: dict[str, dict]) -> Finding:
    if finding.verdict is not Verdict.NOT_RUN:
        return finding
    about = kept.get(finding.key)
    if about is None:
        return replace(finding, found="")
    why = "; ".join(filter(None, [finding.why, f"as recorded at commit {about['commit']}, not run here"]))
    return replace(finding, found=about["found"], verdict=Verdict(about["verdict"]), seeds=about["seeds"], why=why)


def lost(found: Sequence[Finding], record: Path | None = None) -> list[tuple[Finding, Verdict]]:
    """Findings that are worse than what was recorded, and that."""
    kept = {key: Verdict(about["verdict"]) for key, about in _read(record or RECORD).items()}
    return [(each, kept[each.key]) for each in found if each.key in kept and each.verdict.falls_below(kept[each.key])]


def write(found: Sequence[Finding], record: Path | None = None) -> None:
    """Records what was measured; places without runs, or with fewer seeds, keep what is recorded."""
    kept = _read(record or RECORD)
    for each in found:
        if each.measured and each.seeds >= kept.get(each.key, {"seeds": 0})["seeds"]:
            about = {"verdict": each.verdict, "found": each.found, "seeds": each.seeds}
            kept[each.key] = about | {"commit": ", ".join(each.commits)}
    known = {f"{claim.paper}/{claim.name}/{place.name}" for claim in CLAIMS for place in claim.places}
    kept = {key: kept[key] for key in sorted(kept.keys() & known)}
    (record or RECORD).write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def _read(record: Path) -> dict[str, dict]:
    if not record.exists():
        return {}
    try:
        return json.loads(record.read_text())
    except ValueError as error:
        raise InputError(f"{record}: not valid JSON ({error})") from None
