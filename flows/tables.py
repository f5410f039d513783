"""The tables that a method recorded, such as who was to train what and why, as artifacts in the Prefect UI."""

from __future__ import annotations

import re

from prefect.artifacts import create_table_artifact

from tasks.run import Run

MOST_ROWS = 200  # the UI draws all rows of an artifact at once


def show_tables(run: Run) -> None:
    """Makes an artifact of each table, of its first rows; one that cannot be made is noted, and the run goes on."""
    for name, rows in run.folder.tables().items():
        key = re.sub("[^a-z0-9]+", "-", name.lower())
        shown = rows[:MOST_ROWS]
        what = (
            f"{run.experiment.title}: rows 1 to {len(shown)} of {len(rows)}; all are in {name}.parquet of the results"
        )
        try:
            create_table_artifact(shown, key=key, description=what)
        except Exception as error:  # Prefect's and its HTTP client's kinds; the results have the table all the same
            reason = " ".join(str(error).split())
            run.note(f"the table {name} is not in the Prefect UI ({type(error).__name__}: {reason})")
