"""What a paper claims, as comparisons of our own runs, and the verdict on it.

A comparison holds where it holds on every seed that both sides have: one seed that says otherwise is enough for "no". A
claim whose comparisons all hold is reproduced, one of which some hold partly, and one of which none holds is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev

import pandas as pd

from metrics.comparison import collect
from metrics.time import common_targets, time_to_targets
from metrics.time_comparison import run_course


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


class Evidence:
    """The finished runs of one project folder.

    Args:
        results: its folder `results`; it may be missing.
    """

    def __init__(self, results: Path) -> None:
        self.results = results

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run, see `metrics.comparison.collect`; without rows where there is no run."""
        if not any(self.results.glob("*/*/seed-*/metrics.json")):
            return pd.DataFrame(columns=["stream", "method", "seed"])
        return collect(self.results)

    def values(self, stream: str, method: str, metric: str) -> dict[int, float]:
        """Seed -> value, of the runs that have the metric."""
        own = self.runs[(self.runs["stream"] == stream) & (self.runs["method"] == method)]
        return own.set_index("seed")[metric].dropna().to_dict() if metric in own else {}

    def times(self, stream: str, methods: Sequence[str]) -> dict[str, dict[int, float]]:
        """Method -> seed -> simulated time to a target that all of them reach on that seed; inf: never."""
        found: dict[str, dict[int, float]] = {method: {} for method in methods}
        own = self.runs[(self.runs["stream"] == stream) & self.runs["method"].isin(methods)]
        for seed, runs in own.groupby("seed"):
            courses = {name: run_course(self.results / stream / name / f"seed-{seed}") for name in runs["method"]}
            if set(courses) == set(methods) and all(each is not None for each in courses.values()):
                targets = common_targets(courses)
                for method, each in courses.items():
                    found[method][seed] = time_to_targets(each, targets) or float("inf")
        return found


@dataclass(frozen=True)
class Outcome:
    """Of one comparison.

    Attributes:
        said: what was found, for a reader.
        held: on how many seeds it holds.
        seeds: how many there are; 0: not run.
    """

    said: str
    held: int
    seeds: int

    @property
    def holds(self) -> bool:
        return 0 < self.seeds == self.held


Check = Callable[[Evidence], Outcome]


def show(values: Sequence[float], factor: float = 100, digits: int = 1) -> str:
    """ "mean ± sample standard deviation"; without spread for one value."""
    spread = f" ± {factor * stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{factor * fmean(values):.{digits}f}{spread}"


@dataclass(frozen=True)
class Above:
    """`method` has a higher `metric` than `other`, by at least `by`, or `ratio` times as high.

    Attributes:
        by: in the metric's own unit; below 0: at most so much lower.
        ratio: where given it is asked for in the place of `by`.
        lower: the lower one is the better one; then `other` is compared with `method`.
        factor: from the metric's unit to the shown one.
    """

    stream: str
    method: str
    other: str
    metric: str = "final_average_accuracy"
    by: float = 0.0
    ratio: float | None = None
    lower: bool = False
    factor: float = 100
    digits: int = 1

    def __call__(self, evidence: Evidence) -> Outcome:
        mine, theirs = (evidence.values(self.stream, name, self.metric) for name in (self.method, self.other))
        seeds = sorted(mine.keys() & theirs.keys())
        if not seeds:
            return Outcome(f"{self.method} or {self.other} was not run on {self.stream}", 0, 0)
        held = sum(self.better(mine[seed], theirs[seed]) for seed in seeds)
        shown = (show([side[seed] for seed in seeds], self.factor, self.digits) for side in (mine, theirs))
        return Outcome(f"{self.method} {next(shown)}, {self.other} {next(shown)}", held, len(seeds))

    def better(self, mine: float, theirs: float) -> bool:
        if self.lower:
            mine, theirs = theirs, mine
        return mine >= self.ratio * theirs if self.ratio is not None else mine - theirs > self.by


@dataclass(frozen=True)
class Beyond:
    """A metric of one method is above `bound`."""

    stream: str
    method: str
    metric: str
    bound: float = 0.0

    def __call__(self, evidence: Evidence) -> Outcome:
        values = evidence.values(self.stream, self.method, self.metric)
        if not values:
            return Outcome(f"{self.method} was not run on {self.stream}", 0, 0)
        held = sum(value > self.bound for value in values.values())
        return Outcome(f"{self.metric} of {self.method} {show(list(values.values()))}", held, len(values))


@dataclass(frozen=True)
class Sooner:
    """`method` reaches a common accuracy in at most 1 / `ratio` of the simulated time that `other` needs."""

    stream: str
    method: str
    other: str
    ratio: float

    def __call__(self, evidence: Evidence) -> Outcome:
        times = evidence.times(self.stream, (self.method, self.other))
        ratios = [times[self.other][seed] / times[self.method][seed] for seed in sorted(times[self.method])]
        if not ratios:
            return Outcome(f"{self.method} or {self.other} was not run on {self.stream} with run.course", 0, 0)
        held = sum(ratio >= self.ratio for ratio in ratios)
        return Outcome(f"{show(ratios, 1)} times faster than {self.other}", held, len(ratios))


@dataclass(frozen=True)
class Falls:
    """A metric of one method is lower on the last of `streams` than on the first that has it."""

    streams: tuple[str, ...]
    method: str
    metric: str
    name: str

    def __call__(self, evidence: Evidence) -> Outcome:
        courses = {stream: evidence.values(stream, self.method, self.metric) for stream in self.streams}
        courses = {stream: values for stream, values in courses.items() if values}
        first, last = next(iter(courses.values()), {}), courses.get(self.streams[-1], {})
        seeds = sorted(first.keys() & last.keys()) if len(courses) > 1 else []
        if not seeds:
            return Outcome(f"{self.method} was not run on {self.streams[-1]}", 0, 0)
        held = sum(last[seed] < first[seed] for seed in seeds)
        course = ", ".join(show(list(values.values())) for values in courses.values())
        return Outcome(f"{self.name} {course}", held, len(seeds))


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
    outcomes = [check(evidence) for check in place.checks]
    parts = [
        each.said
        + (f" ({'holds' if each.holds else 'does not hold'}: {each.held} of {each.seeds})" if each.seeds else "")
        for each in outcomes
    ]
    return Finding(
        paper=claim.paper,
        name=claim.name,
        claim=claim.words,
        place=place.name,
        tested=place.tested,
        found="; ".join(parts),
        verdict=verdict(outcomes),
        why=place.note,
        seeds=min((each.seeds for each in outcomes), default=0),
        measured=verdict(outcomes) in (Verdict.REPRODUCED, Verdict.PARTLY, Verdict.NOT),
    )


def verdict(outcomes: Sequence[Outcome]) -> Verdict:
    """Of comparisons that make up a claim: one that was not run leaves it open."""
    if not outcomes:
        return Verdict.UNTESTABLE
    if not all(each.seeds for each in outcomes):
        return Verdict.NOT_RUN
    held = sum(each.holds for each in outcomes)
    return Verdict.REPRODUCED if held == len(outcomes) else Verdict.PARTLY if held else Verdict.NOT
