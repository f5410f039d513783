"""Accuracy against what it costs: which methods are on the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan

from .results import Stream


@dataclass(frozen=True)
class Point:
    """A method's means over seeds, and their std (0 with one seed); the cost in the unit shown, accuracy in [0, 1]."""

    cost: float
    accuracy: float
    cost_std: float = 0.0
    accuracy_std: float = 0.0


def front(points: Mapping[str, Point]) -> list[str]:
    """The methods that no other dominates, from the cheapest on.

    One dominates another if it costs no more and is no less accurate, and is better in one of the two.
    """
    found: list[str] = []
    for method, point in sorted(points.items(), key=lambda each: (each[1].cost, -each[1].accuracy, each[0])):
        last = points[found[-1]] if found else None
        if last is None or point.accuracy > last.accuracy or point == last:
            found.append(method)
    return found


def accuracy_metric(stream: Stream) -> str:
    """What methods are compared by: the final average accuracy; where clients have several tasks, that on own data.

    There the average of a global model pools everyone's samples, and that of personal models is a mean over clients.
    """
    several = any(name.startswith("task.") for name in stream.table.columns)
    return "personalisation_mean" if several else "final_average_accuracy"


def points(stream: Stream, costs: Mapping[str, float]) -> dict[str, Point]:
    """Every method that has the accuracy and all costs, by name.

    Args:
        costs: metrics that are added up, and the factor of each to the unit shown.
    """
    found, metric = {}, accuracy_metric(stream)
    for method in stream.runs:
        runs = stream.frame[stream.frame["method"] == method]
        if not {metric, *costs} <= {*runs}:
            continue
        cost = sum(runs[name] * factor for name, factor in costs.items())
        values = [cost.mean(), runs[metric].mean(), cost.std(), runs[metric].std()]
        if isnan(values[0]) or isnan(values[1]):
            continue
        found[method] = Point(*(0.0 if isnan(value) else float(value) for value in values))
    return found


def in_devices_time(stream: Stream) -> dict[str, Point]:
    """Accuracy and simulated time in forward passes of a block, of the methods with a cost model.

    Without one, the time of simulated faults is counted in samples, and cannot be compared with it.
    """
    every = points(stream, {"simulated_time": 1.0})
    return {method: point for method, point in every.items() if "devices" in stream.runs[method][0].about["experiment"]}


BYTES = {"bytes_up": 1e-6, "bytes_down": 1e-6}
