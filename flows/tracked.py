"""`fcl compare --from mlflow`: what MLflow has to compare, in the form that results/ has."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd

from metrics.time_comparison import OverTime, over_time
from tasks.delivery import records
from tasks.tracked_runs import collect


def tracked(root: Path, stream: str | None) -> tuple[pd.DataFrame, list[OverTime], list[str]]:
    """The runs as `metrics.comparison.collect` has them, the streams compared over time, and what a reader must know.

    Raises:
        InputError: MLflow has no finished run of that stream.
        RuntimeError: MLflow does not answer.
    """
    found = collect(root, stream)
    notes = [
        f"left out: {count} of the runs of {variant} on {name}, which have other parameters than the newest one"
        for (name, variant), count in sorted(found.left_out.items())
    ]
    if waiting := len(records(root)):
        notes.append(f"{waiting} finished runs are still on their way to MLflow (runs/untracked)")
    with tempfile.TemporaryDirectory(prefix="fcl-compare-") as place:
        return found.runs, over_time(found.fetch_courses(Path(place)), found.runs), notes
