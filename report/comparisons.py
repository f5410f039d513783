"""Comparisons of finished runs, seed by seed, and what became of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev

import pandas as pd

from metrics.comparison import collect
from metrics.time import common_targets, time_to_targets
from metrics.time_comparison import run_course


class Evidence:
    """The finished runs of one project folder.

    Args:
        results: its folder `results`; it may be missing.
    """

    def __init__(self, results: Path) -> None:
        self.results = results
        self.used: set[tuple[str, str]] = set()  # streams and methods that were asked for

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run, see `metrics.comparison.collect`; without rows where there is no run."""
        if not any(self.results.glob("*/*/seed-*/metrics.json")):
            return pd.DataFrame(columns=["stream", "method", "seed"])
        return collect(self.results)

    def values(self, stream: str, method: str, metric: str) -> dict[int, float]:
        """Seed -> value, of the runs that have the metric."""
        self.used.add((stream, method))
        own = self.runs[(self.runs["stream"] == stream) & (self.runs["method"] == method)]
        return own.set_index("seed")[metric].dropna().to_dict() if metric in own else {}

    def times(self, stream: str, methods: Sequence[str]) -> dict[str, dict[int, float]]:
        """Method -> seed -> simulated time to a target that all of them reach on that seed; inf: never."""
        self.used |= {(stream, method) for method in methods}
        found: dict[str, dict[int, float]] = {method: {} for method in methods}
        own = self.runs[(self.runs["stream"] == stream) & self.runs["method"].isin(methods)]
        for seed, runs in own.groupby("seed"):
            courses = {name: run_course(self.results / stream / name / f"seed-{seed}") for name in runs["method"]}
            if set(courses) == set(methods) and all(each is not None for each in courses.values()):
                targets = common_targets(courses)
                for method, each in courses.items():
                    found[method][seed] = time_to_targets(each, targets) or float("inf")
        return found

    def commits(self) -> list[str]:
        """The code of the runs of all that was asked for, by the first seven digits."""
        files = [
            file for stream, method in self.used for file in self.results.glob(f"{stream}/{method}/seed-*/run.json")
        ]
        return sorted({str(json.loads(file.read_text()).get("git_commit"))[:7] for file in files})


@dataclass(frozen=True)
class Outcome:
    """Of one comparison.

    Attributes:
        subject: what is compared, with its number; comparisons of one subject are told together.
        said: with what, and its number; where nothing was run, what is missing.
        held: on how many seeds it holds.
        seeds: how many there are; 0: not run.
    """

    subject: str
    said: str
    held: int
    seeds: int

    @property
    def holds(self) -> bool:
        return 0 < self.seeds == self.held


Check = Callable[[Evidence], Outcome]


def not_run(method: str, stream: str, other: str = "") -> Outcome:
    return Outcome("", f"{' or '.join(filter(None, [method, other]))} was not run on {stream}", 0, 0)


def show(values: Sequence[float], factor: float = 100, digits: int = 1) -> str:
    """ "mean ± sample standard deviation"; without spread for one value."""
    spread = f" ± {factor * stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{factor * fmean(values):.{digits}f}{spread}"


@dataclass(frozen=True)
class Above:
    """`method` has a higher `metric` than `other`, by more than `by`, or at least `ratio` times as high.

    Attributes:
        by: in the metric's own unit; below 0: at most so much lower.
        ratio: where given it is asked for in the place of `by`.
        lower: the lower one is the better one; then `other` is compared with `method`.
        factor: from the metric's unit to the shown one.
        name: of the metric, where it is not final average accuracy.
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
    name: str = ""

    def __call__(self, evidence: Evidence) -> Outcome:
        mine, theirs = (evidence.values(self.stream, name, self.metric) for name in (self.method, self.other))
        seeds = sorted(mine.keys() & theirs.keys())
        if not seeds:
            return not_run(self.method, self.stream, self.other)
        held = sum(self.better(mine[seed], theirs[seed]) for seed in seeds)
        ours, others = (show([side[seed] for seed in seeds], self.factor, self.digits) for side in (mine, theirs))
        subject = " ".join(filter(None, [self.method, self.name, ours]))
        return Outcome(subject, f"{self.other} {others}", held, len(seeds))

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
            return not_run(self.method, self.stream)
        held = sum(value > self.bound for value in values.values())
        return Outcome(
            f"{self.method} {self.metric} {show(list(values.values()))}", f"{100 * self.bound:g}", held, len(values)
        )


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
            return not_run(self.method, self.stream, self.other)
        held = sum(ratio >= self.ratio for ratio in ratios)
        return Outcome(f"{self.method} faster", f"{self.other} ({show(ratios, 1)} times)", held, len(ratios))


@dataclass(frozen=True)
class Falls:
    """A metric of one method is lower on the last of `streams` than on the first.

    Attributes:
        name: of the metric, for a reader.
    """

    streams: tuple[str, ...]
    method: str
    metric: str
    name: str

    def __call__(self, evidence: Evidence) -> Outcome:
        courses = {stream: evidence.values(stream, self.method, self.metric) for stream in self.streams}
        first, last = courses[self.streams[0]], courses[self.streams[-1]]
        courses = {stream: values for stream, values in courses.items() if values}
        seeds = sorted(first.keys() & last.keys())
        if not seeds:
            return not_run(self.method, self.streams[-1])
        held = sum(last[seed] < first[seed] for seed in seeds)
        course = ", ".join(show(list(values.values())) for values in courses.values())
        return Outcome(f"{self.name} {course}", "the first", held, len(seeds))
