"""The manifest: one row per sample that says who sees it, when and what for. The manifest is the stream.

Only where the domains of a stream overlap, a sample has a row for each experience in which its client meets it.

    sample      int64     index into the source's arrays
    label       int64     the source's label
    task        category  what is asked of the sample: "classify", or the name of a multi-task stream's task
    client      int64     -1 for public samples
    experience  int64     -1 for public samples
    split       category  "train", "test" or "public"
    domain      int64     what is done to the input, see `domain`; 0: nothing

In memory it is a dictionary of int64 arrays, task and split as places in `tasks` and SPLITS; `deal` makes it and
`promises` checks it. `tasks` are the names of all tasks of the stream, in its layout's order.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TASKS = ("classify",)
SPLITS = ("train", "test", "public")
TRAIN, TEST, PUBLIC = range(3)
COLUMNS = ("sample", "label", "task", "client", "experience", "split", "domain")

Manifest = dict[str, np.ndarray]
Names = tuple[str, ...]


def categories(tasks: Names) -> dict[str, Names]:
    """The words of the columns that hold words."""
    return {"task": tasks, "split": SPLITS}


def to_pandas(manifest: Manifest, tasks: Names = TASKS):
    """The manifest as a DataFrame, with task and split as categories."""
    return _table(manifest, tasks).to_pandas()


def write(manifest: Manifest, path: Path, tasks: Names = TASKS) -> None:
    """Write the manifest as a Parquet file."""
    pq.write_table(_table(manifest, tasks), path)


def read(path: Path, tasks: Names = TASKS) -> Manifest:
    """Read what `write` wrote.

    Raises:
        pyarrow.ArrowException, OSError, KeyError, ValueError: this is not a manifest.
    """
    table = pq.read_table(path)
    return {name: _codes(table.column(name), categories(tasks).get(name)) for name in COLUMNS}


def digest(manifest: Manifest, tasks: Names = TASKS) -> str:
    """SHA-256 over names and values of the columns: the Parquet file's bytes change with the library, these do not."""
    total = hashlib.sha256()
    for name in COLUMNS:
        total.update(f"{name} {len(manifest[name])} {categories(tasks).get(name)}\n".encode())
        total.update(np.ascontiguousarray(manifest[name], "<i8"))
    return total.hexdigest()


def _table(manifest: Manifest, tasks: Names) -> pa.Table:
    words = categories(tasks)

    def column(name: str) -> pa.Array:
        values = pa.array(manifest[name], pa.int8() if name in words else pa.int64())
        return pa.DictionaryArray.from_arrays(values, list(words[name])) if name in words else values

    return pa.table({name: column(name) for name in COLUMNS})


def _codes(column: pa.ChunkedArray, words: Names | None) -> np.ndarray:
    if words is None:
        return column.to_numpy().astype(np.int64, casting="safe")
    column = column.unify_dictionaries().combine_chunks()
    code_of = np.array([words.index(name) for name in column.dictionary.to_pylist()])
    return code_of[column.indices.to_numpy()]
