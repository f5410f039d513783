"""Methods x metrics: mean ± std, the best marked, and paired differences to the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose, isnan

from metrics.comparison import MISSING, PERCENT, Column, cell

from .results import Stream
from .significance import FEWEST_SEEDS, paired

ROUNDING = 1e-12  # relative: means that are nearer are equal up to the order of their sums


@dataclass(frozen=True)
class Cell:
    """What a method has in a column.

    Attributes:
        text: mean ± std, or a difference and its std.
        note: a second line, may be empty: what the test says.
        best: no method has a better mean.
        leads: the best of the methods that send anything, where the best of all sends nothing.
    """

    text: str
    note: str = ""
    best: bool = False
    leads: bool = False


@dataclass(frozen=True)
class Row:
    """A method's cells; seeds is how many it was run with."""

    method: str
    seeds: int
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """Headings with `↑` (higher is better) or `↓`, and a row a method, the finally best first."""

    title: str
    header: list[str]
    rows: list[Row]


def best(stream: Stream, column: Column, methods: Sequence[str] | None = None) -> list[str]:
    """The methods (default: all) with the best mean in a column, several where it is equal; none where none has it."""
    means = {}
    if column.metric in stream.table:
        means = stream.table[column.metric].dropna().to_dict()
    means = {method: mean for method, mean in means.items() if methods is None or method in methods}
    if not means:
        return []
    top = (max if column.higher else min)(means.values())
    return [method for method, mean in means.items() if isclose(mean, top, rel_tol=ROUNDING, abs_tol=ROUNDING)]


def shown(stream: Stream, columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns in which a method of the stream has a number."""
    return {heading: column for heading, column in columns.items() if column.metric in stream.table}


def arrow(heading: str, column: Column) -> str:
    return f"{heading} {'↑' if column.higher else '↓'}"


def means(stream: Stream, columns: Mapping[str, Column], title: str) -> Table:
    """Mean ± std over seeds of every method that has any of the metrics."""
    columns = shown(stream, columns)
    senders = [method for method in stream.table.index if stream.sends(method)]
    marks = {heading: (best(stream, column), best(stream, column, senders)) for heading, column in columns.items()}
    rows = []
    for method, row in stream.table.iterrows():
        cells = []
        for heading, column in columns.items():
            top, leading = marks[heading]
            bold = method in top
            leads = method in leading and not bold and not {*leading} & {*top}
            cells.append(Cell(cell(row, column), best=bold, leads=leads))
        if any(each.text != MISSING for each in cells):
            rows.append(Row(method, int(row["seeds"]), cells))
    return Table(title, [arrow(heading, column) for heading, column in columns.items()], rows)


def differences(stream: Stream, columns: Mapping[str, Column], title: str, senders: bool = False) -> Table:
    """Paired differences over seeds to the best method of each column, and what the t-test says.

    Args:
        senders: only of the methods that send anything, to the best of them.
    """
    columns = shown(stream, columns)
    methods = [method for method in stream.table.index if not senders or stream.sends(method)]
    columns = {heading: column for heading, column in columns.items() if best(stream, column, methods)}
    rows = []
    for method in methods:
        cells = []
        for column in columns.values():
            top = best(stream, column, methods)
            cells.append(Cell("best", best=True) if method == top[0] else _against(stream, column, method, top[0]))
        rows.append(Row(method, int(stream.table.loc[method, "seeds"]), cells))
    return Table(title, [arrow(heading, column) for heading, column in columns.items()], rows)


def _against(stream: Stream, column: Column, method: str, other: str) -> Cell:
    found = paired(stream.frame, stream.name, column.metric, method, other)
    if isnan(found.difference):
        return Cell(MISSING, "" if isnan(stream.table.loc[method, column.metric]) else found.words)
    spread = "" if isnan(found.std) else f" ± {found.std * column.factor:.{column.digits}f}"
    note = found.words
    if found.p is not None and found.seeds == stream.table.loc[method, "seeds"]:  # the row says how many
        note = note.partition(",")[0]
    elif untested(stream) and not found.identical:  # the title says why
        note = ""
    return Cell(signed(found.difference * column.factor, column.digits) + spread, note)


def untested(stream: Stream) -> bool:
    """Whether there are too few seeds for any test."""
    return bool(stream.table["seeds"].max() < FEWEST_SEEDS)


def signed(value: float, digits: int) -> str:
    """With a sign, and a true minus: `+1.0`, `−0.5`, `0.0`."""
    text = f"{abs(value):.{digits}f}"
    return text if not float(text) else f"{'−' if value < 0 else '+'}{text}"


def compared(stream: Stream, columns: Mapping[str, Column]) -> list[Table]:
    """The differences to the best and, where that sends nothing, to the best that sends anything."""
    columns = {heading: column for heading, column in columns.items() if column.factor == PERCENT}
    found = []
    without = f"; fewer than {FEWEST_SEEDS} seeds: no test" * untested(stream)
    if len(stream.table) > 1:
        found.append(differences(stream, columns, f"Difference to the best, paired over seeds{without}"))
    senders = [method for method in stream.table.index if stream.sends(method)]
    bounds = any(
        not {*best(stream, column)} & {*best(stream, column, senders)} for column in shown(stream, columns).values()
    )
    if len(senders) > 1 and bounds:
        title = f"The same among methods whose clients and server exchange something{without}"
        found.append(differences(stream, columns, title, senders=True))
    return found
