"""Each task in its own measures, averaged over the clients that hold it; and methods side by side in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean, pstdev

import pandas as pd
from rich.table import Table

from metrics.comparison import MISSING, PERCENT, Column, cell

HIGHER_IS_WORSE = ("mse",)
SHOWN = {  # heading, factor from the unit to the shown one, digits after the point
    "accuracy": ("accuracy", PERCENT, 1),
    "token_accuracy": ("words", PERCENT, 1),
    "meteor": ("METEOR", PERCENT, 1),
    "mse": ("MSE", 1, 3),
}
LEGEND = (
    "each task at the clients that hold it, by what each client uses, on its own test data after the last experience: "
    "accuracy, words (token accuracy) and METEOR in %, MSE of pixels in [-1, 1]; mean ± std over seeds"
)


def task_measures(frame: pd.DataFrame, main: str) -> dict[str, float]:
    """`task.NAME.MEASURE` after the last experience, in its own unit; of other kinds than `main` with their prefix.

    A client's value is the mean over its test samples of the task; the metric is the plain mean over the clients that
    hold it. `.spread` is the population's standard deviation over them, `.worst_decile` the mean of the worst ceil(n
    / 10). Where a centre holds all data, its model is measured at the clients, too.
    """
    found: dict[str, float] = {}
    last = frame[(frame["trained"] == frame["trained"].max()) & (frame["client"] >= 0)]
    for (kind, task, measure), rows in last.groupby(["model", "task", "measure"]):
        weighted = (rows["value"] * rows["samples"]).groupby(rows["client"]).sum()
        each = sorted(weighted / rows.groupby("client")["samples"].sum(), reverse=measure in HIGHER_IS_WORSE)
        name = f"{'' if kind == main else f'{kind}.'}task.{task}.{measure}"
        found[name] = fmean(each)
        found[f"{name}.spread"] = pstdev(each)
        found[f"{name}.worst_decile"] = fmean(each[: -(-len(each) // 10)])
    return found


def task_columns(table: pd.DataFrame) -> dict[str, Column]:
    """The measures of each task in a `comparison.table`, by heading; empty where clients have one task."""
    matches = [re.fullmatch(r"task\.(\w+)\.(\w+?)", name) for name in table.columns]
    names = [match.groups() for match in matches if match and match[2] in SHOWN]
    order = {task: place for place, task in enumerate(dict.fromkeys(task for task, _ in names))}
    names.sort(key=lambda pair: (order[pair[0]], list(SHOWN).index(pair[1])))
    found = {}
    for task, measure in names:
        heading, factor, digits = SHOWN[measure]
        higher = measure not in HIGHER_IS_WORSE
        found[f"{task}: {heading}"] = Column(f"task.{task}.{measure}", factor, higher, digits)
    return found


def task_rows(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the methods of one stream that were measured task by task; no rows where none was.

    Args:
        table: `metrics.comparison.table` of one stream.
    """
    columns = task_columns(table)
    rows = []
    for (_, method), row in table.iterrows():
        cells = [cell(row, column) for column in columns.values()]
        if any(each != MISSING for each in cells):
            rows.append([method, *("" if each == MISSING else each for each in cells)])
    return ["method", *columns], rows


def to_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The tasks as a Markdown table, and what they are."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in [header, rule, *rows]), "", LEGEND, ""])


def to_rich(stream: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The tasks for the terminal: methods as columns would be too many, so a row is a method."""
    shown = Table(title=stream, title_justify="left", caption=LEGEND, caption_justify="left")
    for heading in header:
        shown.add_column(heading.replace(": ", "\n"), justify="left" if heading == "method" else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    return shown
