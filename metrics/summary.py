"""A run in numbers: one flat dictionary for the whole run, one row per experience for its course."""

from __future__ import annotations

from math import isnan

import pandas as pd

from metrics import accuracy
from metrics.communication import bytes_until, costs
from metrics.experts import consolidation_gap
from metrics.personalisation import personalisation
from metrics.retention import retention


def summarise(frame: pd.DataFrame, rounds: pd.DataFrame, main: str) -> dict[str, float]:
    """Every metric of a run under its name, sorted; counts are int, the rest float.

    The accuracy metrics without a prefix are those of the `main` model, the method's answer; those of any other kind
    of model carry its name, as in `received.forgetting`. A metric that is not defined, such as the forgetting of a
    single experience, is left out: 0 would be a claim, and NaN is not JSON.
    """
    found = {**retention(frame, main), **personalisation(frame, main), **costs(rounds), **consolidation_gap(frame)}
    for model in frame["model"].unique():
        prefix = "" if model == main else f"{model}."
        found |= {prefix + name: value for name, value in _accuracy(frame, model).items()}
    return {name: found[name] for name in sorted(found) if not isnan(found[name])}


def _accuracy(frame: pd.DataFrame, model: str) -> dict[str, float]:
    R = accuracy.matrix(frame, model)
    if not len(R):
        return {}
    return {
        "final_average_accuracy": accuracy.final_average_accuracy(R),
        "average_incremental_accuracy": accuracy.average_incremental_accuracy(R),
        "forgetting": accuracy.forgetting(R),
        "backward_transfer": accuracy.backward_transfer(R),
        "forward_transfer": accuracy.forward_transfer(R, accuracy.untrained(frame, model)),
        "learning_accuracy": accuracy.learning_accuracy(R),
    }


def over_experiences(frame: pd.DataFrame, rounds: pd.DataFrame, main: str) -> pd.DataFrame:
    """The main model's course, one row per experience a: every column as it stood when a ended.

    Columns: experience; average_accuracy `A_a`; current_accuracy `R[a,a]`; forgetting (NaN after the first
    experience, where it is not defined); cumulative_bytes, up and down.
    """
    R = accuracy.matrix(frame, main)
    course = range(len(R))
    return pd.DataFrame(
        {
            "experience": course,
            "average_accuracy": [accuracy.average_accuracy(R, a) for a in course],
            "current_accuracy": [R[a, a] for a in course],
            "forgetting": [accuracy.forgetting(R[: a + 1]) for a in course],
            "cumulative_bytes": [bytes_until(rounds, a) for a in course],
        }
    )
