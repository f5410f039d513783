"""The last stage of the reproduction: all methods' results, stream by stream, into `comparison/`; MLflow has them all.

python -m flows.comparison [STREAM ...]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from metrics.comparison import collect, table, to_markdown
from metrics.plots import draw_comparison, draw_over_time
from metrics.provenance import origin
from metrics.summary import over_experiences
from metrics.task_measures import task_rows
from metrics.task_measures import to_markdown as tasks_to_markdown
from metrics.time_comparison import over_time
from metrics.time_comparison import to_markdown as times_to_markdown
from parameters import project_root
from tasks.delivery import deliver_all
from tasks.files import write_json
from tasks.results import read_json

from . import settings


def compare(stream: str, root: Path) -> None:
    """Writes `comparison/STREAM/`: table.md, metrics.json (means over seeds), accuracy.csv, accuracy.png and runs.json.

    Where methods were measured over simulated time, also time.md and time.png; where task by task, tasks.md. runs.json
    says which runs were compared, and so do the figures' metadata.
    """
    frame = collect(root / "results", stream)
    about = {"stream": stream, "runs": [compared_run(root / "results", row) for row in frame.itertuples()]}
    folder = root / "comparison" / stream
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    summary = table(frame)
    (folder / "table.md").write_text(to_markdown(summary))
    means = {
        method: {name: value for name, value in row.items() if pd.notna(value)}
        for (_, method), row in summary.to_dict("index").items()
    }
    write_json(folder / "metrics.json", means)
    write_json(folder / "runs.json", about)
    curves = {
        method: [course(root, stream, method, seed) for seed in runs.seed] for method, runs in frame.groupby("method")
    }
    draw_comparison(curves, folder / "accuracy.png", f"{stream}: average accuracy so far", about)
    wide = {method: pd.concat(runs).groupby("experience").average_accuracy.mean() for method, runs in curves.items()}
    pd.DataFrame(wide).to_csv(folder / "accuracy.csv", float_format="%.6f")
    header, rows = task_rows(summary)
    if rows:
        (folder / "tasks.md").write_text(tasks_to_markdown(header, rows))
    for compared in over_time(root / "results", frame):
        (folder / "time.md").write_text(times_to_markdown(compared))
        title = f"{stream}: average accuracy over simulated time"
        draw_over_time(compared.courses, folder / "time.png", title, about)


def compared_run(results: Path, row: Any) -> dict[str, Any]:
    """What names a run that was compared: where it lay in `results`, and what its run.json says of its origin."""
    name = f"{row.stream}/{row.method}/seed-{row.seed}"
    return {"name": name, **origin(read_json(results / name / "run.json"))}


def course(root: Path, stream: str, method: str, seed: int) -> pd.DataFrame:
    """One run's main model over the experiences."""
    folder = root / "results" / stream / method / f"seed-{seed}"
    matrix = pd.read_parquet(folder / "accuracy_matrix.parquet")
    rounds = pd.read_parquet(folder / "rounds.parquet")
    return over_experiences(matrix, rounds, read_json(folder / "run.json")["main_model"])


if __name__ == "__main__":
    settings.apply()
    for name in sys.argv[1:]:
        compare(name, project_root())
    if kept := deliver_all(project_root()):
        print(f"note: MLflow could not be reached; the records of {len(kept)} runs are kept in runs/untracked")
