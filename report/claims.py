"""What a paper claims, as comparisons of our own runs, and the verdict on it.

A comparison holds where it holds on every seed that both sides have: one seed that says otherwise is enough for "no". A
claim whose comparisons all hold is reproduced, one of which some hold partly, and one of which none holds is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from .comparisons import Check, Evidence, Outcome


class Verdict(StrEnum):
    REPRODUCED = "reproduced"
    PARTLY = "partly"
    NOT = "not reproduced"
    NOT_RUN = "not run"
    UNTESTABLE = "not testable here"

    def falls_below(self, other: Verdict) -> bool:
        """Whether a claim that once had the verdict `other` does not have it any more."""
        order = [Verdict.NOT, Verdict.PARTLY, Verdict.REPRODUCED]
        return self in order and other in order and order.index(self) < order.index(other)


@dataclass(frozen=True)
class Place:
    """Where a claim is tested.

    Attributes:
        name: digits, or CIFAR-100, reduced.
        folder: of the project whose results are looked at, from the repository's: "" or paper.
        tested: what is compared, in words.
        checks: all of the claim; none: it cannot be tested here.
        note: what a reader must know beside the numbers.
    """

    name: str
    folder: str
    tested: str
    checks: tuple[Check, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """What a paper says of its system.

    Attributes:
        name: short and unique within the paper.
        words: the claim, from the paper's abstract or pages.
    """

    paper: str
    name: str
    words: str
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Finding:
    """The verdict on one claim in one place.

    Attributes:
        found: our numbers, one sentence a comparison, with the seeds on which it holds.
        why: what a reader must know beside the numbers.
        seeds: of the comparison that has fewest.
        measured: from runs that are here; else not at all, or as recorded.
        commits: the code of these runs.
    """

    paper: str
    name: str
    claim: str
    place: str
    tested: str
    found: str
    verdict: Verdict
    why: str
    seeds: int
    measured: bool
    commits: tuple[str, ...]

    @property
    def said(self) -> str:
        """The verdict, with the number of seeds where it rests on a single one."""
        return f"{self.verdict} (one seed)" if self.seeds == 1 else str(self.verdict)

    @property
    def key(self) -> str:
        return f"{self.paper}/{self.name}/{self.place}"


def judge(claims: Sequence[Claim], evidence: Mapping[str, Evidence]) -> list[Finding]:
    """A finding for each claim and place.

    Args:
        evidence: the runs of each project folder that places name.
    """
    return [_finding(claim, place, evidence[place.folder]) for claim in claims for place in claim.places]


def _finding(claim: Claim, place: Place, evidence: Evidence) -> Finding:
    evidence.used.clear()
    outcomes = [check(evidence) for check in place.checks]
    return Finding(
        paper=claim.paper,
        name=claim.name,
        claim=claim.words,
        place=place.name,
        tested=place.tested,
        found="; ".join(told(outcomes)),
        verdict=verdict(outcomes),
        why=place.note,
        seeds=min((each.seeds for each in outcomes), default=0),
        measured=verdict(outcomes) in (Verdict.REPRODUCED, Verdict.PARTLY, Verdict.NOT),
        commits=tuple(evidence.commits()),
    )


def told(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The comparisons in words, those of one subject together: which hold, and which do not, on how many seeds."""
    for subject in dict.fromkeys(each.subject for each in outcomes):
        own = [each for each in outcomes if each.subject == subject]
        good = [each.said for each in own if each.holds]
        bad = [f"{each.said} ({each.held} of {each.seeds} seeds)" for each in own if not each.holds and each.seeds]
        words = ["holds against " + ", ".join(good)] * bool(good) + ["not against " + ", ".join(bad)] * bool(bad)
        yield ": ".join(filter(None, [subject, ", ".join(words or [each.said for each in own])]))


def verdict(outcomes: Sequence[Outcome]) -> Verdict:
    """Of comparisons that make up a claim: one that was not run leaves it open."""
    if not outcomes:
        return Verdict.UNTESTABLE
    if not all(each.seeds for each in outcomes):
        return Verdict.NOT_RUN
    held = sum(each.holds for each in outcomes)
    return Verdict.REPRODUCED if held == len(outcomes) else Verdict.PARTLY if held else Verdict.NOT
