"""Accuracy over simulated time: how long heterogeneous devices would take, whatever this machine does.

The unit is a forward pass of one block over a minibatch on a device of speed 1. A round takes as long as its slowest
client (`simulated` in rounds.parquet), and rounds follow one another; the server's own work is not counted. [field]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import pandas as pd

from metrics.communication import cumulative_bytes

SHARE = 0.95  # of the accuracy that every method reaches: the default target


def course_over_time(course: pd.DataFrame, rounds: pd.DataFrame) -> pd.DataFrame:
    """A run's course, one row per measured round, in order.

    Columns: experience; round; time, simulated, and bytes, up and down, from the start of the run to the end of the
    round; accuracy, in [0, 1], the plain mean over the experiences so far.

    Args:
        course: course.parquet, one row per round and tested experience.
        rounds: rounds.parquet, one row per round and client.
    """
    where = ["experience", "round"]
    slowest = rounds.groupby(where)["simulated"].max()
    spent = pd.DataFrame({"time": slowest.cumsum(), "bytes": cumulative_bytes(rounds)})
    accuracy = course.groupby(where)["accuracy"].agg(fmean)
    every = spent.index.union(accuracy.index)
    spent = spent.reindex(every).ffill().fillna(0)  # a round in which nobody took part costs nothing
    found = spent.loc[accuracy.index].assign(accuracy=accuracy).reset_index()
    return found.astype({"time": float, "bytes": int})


def mean_course(runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Round by round the mean over seeds of `course_over_time`: of time, of bytes and of accuracy."""
    return pd.concat(runs).groupby(["experience", "round"]).mean().reset_index()


def time_to(course: pd.DataFrame, target: float) -> float | None:
    """The first time at which the accuracy is at least `target`; None if never."""
    reached = course.loc[course["accuracy"] >= target, "time"]
    return float(reached.iloc[0]) if len(reached) else None


def common_targets(courses: Mapping[str, pd.DataFrame], share: float = SHARE) -> list[float]:
    """For each experience `share` of the lowest accuracy that a method ends it with, so that all reach it. [ours]"""
    ends = pd.DataFrame({method: each.groupby("experience")["accuracy"].last() for method, each in courses.items()})
    return [share * lowest for lowest in ends.min(axis="columns")]


def time_to_targets(course: pd.DataFrame, targets: Sequence[float]) -> float | None:
    """Simulated time to a target accuracy: `sum_a` of the time in experience a until `targets[a]`; None if never.

    With one experience it is `time_to`. With several, the accuracy over the experiences so far falls whenever one
    begins, and the first time at which it was as high as it is in the end says nothing. [ours]
    """
    total, begun = 0.0, 0.0
    for target, (_, part) in zip(targets, course.groupby("experience"), strict=True):
        reached = time_to(part, target)
        if reached is None:
            return None
        total += reached - begun
        begun = float(part["time"].iloc[-1])
    return total


def speed_up(courses: Mapping[str, pd.DataFrame], targets: Sequence[float] | None = None) -> pd.DataFrame:
    """How long each method takes to the targets, the fastest first, indexed by method.

    Columns: time, `time_to_targets`, NaN if never; relative, time over the fastest method's: 1 for that one, and for
    any other the fastest's speed-up over it.

    Args:
        courses: `course_over_time`, or `mean_course` over several seeds, of each method.
        targets: accuracies in [0, 1], one an experience; default `common_targets`.
    """
    targets = common_targets(courses) if targets is None else targets
    times = {method: time_to_targets(course, targets) for method, course in courses.items()}
    found = pd.Series(times, dtype=float).rename_axis("method").sort_values(kind="stable").to_frame("time")
    return found.assign(relative=found["time"] / found["time"].min())
