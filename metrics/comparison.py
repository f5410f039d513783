"""Methods side by side: the runs under results/STREAM/METHOD/seed-N as one table, mean and spread over seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.table import Table

from errors import InputError

WORDS = ["stream", "method"]
PERCENT, MEGA = 100, 1e-6


class Column(NamedTuple):
    """How a metric is shown.

    Attributes:
        metric: its name in metrics.json.
        factor: from its unit to the shown one.
        higher: whether higher is better.
        digits: after the point, once multiplied.
    """

    metric: str
    factor: float
    higher: bool
    digits: int = 1


COLUMNS = {  # by heading
    "final": Column("final_average_accuracy", PERCENT, higher=True),
    "own data": Column("personalisation_mean", PERCENT, higher=True),
    "incremental": Column("average_incremental_accuracy", PERCENT, higher=True),
    "forgetting": Column("forgetting", PERCENT, higher=False),
    "KR time": Column("temporal_retention", PERCENT, higher=True),
    "KR space": Column("spatial_retention", PERCENT, higher=True),
    "MB up": Column("bytes_up", MEGA, higher=False),
    "MB down": Column("bytes_down", MEGA, higher=False),
}
FAIRNESS = {  # by heading: of the clients' final average accuracies, each on its own test data
    "mean": Column("personalisation_mean", PERCENT, higher=True),
    "spread": Column("personalisation_std", PERCENT, higher=False),
    "worst tenth": Column("personalisation_worst_decile", PERCENT, higher=True),
    "gain": Column("personalisation_gain", PERCENT, higher=True),
}
MISSING = "–"
LEGEND = (
    "final, own data, incremental: average accuracy of the main model after the last experience, of what each client "
    "uses on its own test data, and over all experiences; KR: knowledge retention; all in %, mean ± std over seeds"
)


def collect(results: Path, stream: str | None = None) -> pd.DataFrame:
    """One row per finished run: stream, method, seed, and its metrics.json; sorted. `stream` None takes them all.

    Raises:
        InputError: there is no such run, or a metrics.json is not an object of numbers.
    """
    if stream and "/" in stream:
        raise InputError(f"--stream: expected the name of a stream (got '{stream}')")
    paths = sorted(results.glob(f"{stream or '*'}/*/seed-*/metrics.json"))
    paths = [path for path in paths if re.fullmatch(r"seed-\d+", path.parent.name)]
    runs = [_run(path) for path in paths]
    _same_but_seed(paths)
    if not runs:
        where = f"{results}/{stream or ''}"
        raise InputError(f"no results in {where}; run: fcl run fedavg --stream {stream or 'digits'}")
    return pd.DataFrame(runs).sort_values(["stream", "method", "seed"], ignore_index=True)


def same_but_seed(run: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run.json what must be equal for a mean over seeds."""
    return {**run["experiment"], "seed": None, "stream_digest": run["stream_digest"]}


def _same_but_seed(paths: Sequence[Path]) -> None:
    """A mean over seeds of different experiments would be a number about nothing.

    Raises:
        InputError: two runs of a method on a stream differ in more than their seed.
    """
    first: dict[Path, tuple[Path, dict]] = {}
    for path in (path.with_name("run.json") for path in paths):
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            what = same_but_seed(found)
            other, known = first.setdefault(path.parent.parent, (path.parent, what))
            if what != known:
                changed = ", ".join(key for key in what if what[key] != known.get(key))
                raise InputError(
                    f"{path.parent} and {other} are different experiments ({changed}): no mean over seeds; move one of "
                    "them away, or run it again"
                )


def _run(path: Path) -> dict[str, str | int | float]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); delete it and run the experiment again") from error
    if not isinstance(metrics, dict):
        raise InputError(f"{path}: expected an object of numbers, got {type(metrics).__name__}")
    for name, value in metrics.items():
        if not isinstance(value, int | float):
            raise InputError(f"{path}, {name}: expected a number, got {value!r}")
    stream, method, seed = path.parts[-4:-1]
    return {"stream": stream, "method": method, "seed": int(seed.removeprefix("seed-")), **metrics}


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Method x metric, indexed by (stream, method): `seeds`, how many, then each metric and its `_std` over seeds.

    Sorted by stream, then the best final average accuracy first. std has ddof = 1: NaN for a single seed.
    """
    groups = frame.groupby(["stream", "method"])
    mean, std = (groups.agg(how).drop(columns="seed") for how in ("mean", "std"))
    columns = [column for name in mean for column in (mean[name], std[name].rename(f"{name}_std"))]
    found = pd.concat([groups["seed"].nunique().rename("seeds"), *columns], axis="columns")
    found = found.copy().reset_index()  # a copy lies in one piece: pandas warns of what many columns are glued from
    keys = [key for key in ("stream", "final_average_accuracy", "method") if key in found]
    ascending = [key != "final_average_accuracy" for key in keys]
    return found.sort_values(keys, ascending=ascending).set_index(["stream", "method"]).copy()


def to_markdown(table: pd.DataFrame) -> str:
    """The main columns as a Markdown table, "mean ± std", and what they are."""
    header = _header(table)
    rule = ["---" if heading in WORDS else "---:" for heading in header]
    lines = [f"| {' | '.join(row)} |" for row in [header, rule, *_rows(table)]]
    return "\n".join([*lines, "", LEGEND, ""])


def to_rich(table: pd.DataFrame) -> Table:
    """The main columns for the terminal, "mean ± std"."""
    shown = Table(caption=LEGEND, caption_justify="left")
    for heading in _header(table):
        shown.add_column(heading, justify="left" if heading in WORDS else "right", no_wrap=True)
    for row in _rows(table):
        shown.add_row(*row)
    return shown


def _header(table: pd.DataFrame) -> list[str]:
    return [*_words(table), "seeds", *COLUMNS]


def _rows(table: pd.DataFrame) -> Iterator[list[str]]:
    for row in table.reset_index().to_dict("records"):
        numbers = (cell(row, column) for column in COLUMNS.values())
        yield [*(row[name] for name in _words(table)), str(row["seeds"]), *numbers]


def _words(table: pd.DataFrame) -> list[str]:
    """The stream is named only where there is more than one."""
    return WORDS if table.index.get_level_values("stream").nunique() > 1 else ["method"]


def cell(row: Mapping[str, float], column: Column) -> str:
    """A method's "mean ± std" in the column's unit; `MISSING` where it has no such metric.

    Args:
        row: of `table`.
    """
    mean, std = (row.get(name, float("nan")) for name in (column.metric, f"{column.metric}_std"))
    if isnan(mean):
        return MISSING
    exact = column.factor == MEGA and not std  # bytes that no seed changes need no spread
    shown = [f"{value * column.factor:.{column.digits}f}" for value in (mean, std)]
    return shown[0] if isnan(std) or exact else " ± ".join(shown)
