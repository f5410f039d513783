"""Methods side by side over simulated time: those of results/ that were measured after every round."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from metrics.communication import has_simulated_time
from metrics.time import SHARE, common_targets, course_over_time, mean_course, speed_up


@dataclass(frozen=True)
class OverTime:
    """The methods of one stream.

    Attributes:
        courses: for each method its course, mean over seeds (`metrics.time.mean_course`).
        left_out: methods that cannot be compared: a run has no simulated times or no course of all its rounds.
    """

    stream: str
    courses: dict[str, pd.DataFrame]
    left_out: tuple[str, ...]

    @cached_property
    def targets(self) -> list[float]:
        return common_targets(self.courses)

    @cached_property
    def times(self) -> pd.DataFrame:
        return speed_up(self.courses, self.targets)

    @property
    def header(self) -> list[str]:
        return ["method", "time to target", f"relative to {self.times.index[0]}"]

    @property
    def rows(self) -> list[list[str]]:
        return [[row.Index, _time(row.time), f"{row.relative:.2f}"] for row in self.times.itertuples()]

    @property
    def legend(self) -> str:
        accuracies = ", ".join(f"{100 * target:.1f}" for target in self.targets)
        several = "; one target an experience, times summed over experiences" if len(self.targets) > 1 else ""
        said = (
            "time: simulated, in forward passes of one block over a minibatch on a device of speed 1, each round as "
            "long as its slowest client; until the main model's average accuracy so far (mean over seeds) reaches "
            f"{SHARE:.0%} of the lowest one that a method of this table ends with: {accuracies} %{several}"
        )
        without = ", ".join(self.left_out)
        return said + (f"; without simulated times or a course of all rounds (run.course): {without}" * bool(without))


def over_time(results: Path, runs: pd.DataFrame) -> list[OverTime]:
    """The streams on which at least two methods can be compared.

    Args:
        runs: `metrics.comparison.collect`.
    """
    found = []
    for stream, of_stream in runs.groupby("stream"):
        courses, left_out = {}, []
        for method, seeds in of_stream.groupby("method")["seed"]:
            each = [run_course(results / stream / method / f"seed-{seed}") for seed in seeds]
            if any(course is None for course in each):
                left_out.append(method)
            else:
                courses[method] = mean_course(each)
        if len(courses) > 1:
            found.append(OverTime(stream, courses, tuple(left_out)))
    return found


def run_course(folder: Path) -> pd.DataFrame | None:
    """A run over simulated time; None: it has no simulated times, or no course of all its rounds."""
    if not (folder / "course.parquet").exists():
        return None
    course, rounds = (pd.read_parquet(folder / f"{name}.parquet") for name in ("course", "rounds"))
    played, measured = ({*zip(each["experience"], each["round"], strict=True)} for each in (rounds, course))
    if "fault" in rounds and "devices" not in json.loads((folder / "run.json").read_text())["experiment"]:
        return None  # without a cost model the time of simulated faults is in samples
    return course_over_time(course, rounds) if has_simulated_time(rounds) and played <= measured else None


def to_markdown(compared: OverTime) -> str:
    """The times as a Markdown table, and what they are."""
    lines = [f"| {' | '.join(row)} |" for row in [compared.header, ["---", "---:", "---:"], *compared.rows]]
    return "\n".join([*lines, "", compared.legend, ""])


def to_rich(compared: OverTime) -> Group:
    """The times for the terminal, and what they are."""
    shown = Table(title=compared.stream, title_justify="left")
    for heading in compared.header:
        shown.add_column(heading, justify="left" if heading == "method" else "right", no_wrap=True)
    for row in compared.rows:
        shown.add_row(*row)
    return Group(shown, Text(compared.legend, style="dim italic"))


def _time(time: float) -> str:
    return f"{time:,.0f}" if time >= 100 else f"{time:.3g}"
