"""The manifest: one row per sample that says who sees it, when and what for. The manifest is the stream.

Only where the domains of a stream overlap, a sample has a row for each experience in which its client meets it.

    sample      int64     index into the source's arrays
    label       int64     the source's label
    task        category  what is asked of the sample: "classify"
    client      int64     -1 for public samples
    experience  int64     -1 for public samples
    split       category  "train", "test" or "public"
    domain      int64     what is done to the input, see `domain`; 0: nothing

In memory it is a dictionary of int64 arrays, task and split as places in TASKS and SPLITS; `deal` makes it and
`promises` checks it.
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
CATEGORIES = {"task": TASKS, "split": SPLITS}
COLUMNS = ("sample", "label", "task", "client", "experience", "split", "domain")

Manifest = dict[str, np.ndarray]


def to_pandas(manifest: Manifest):
    """The manifest as a DataFrame, with task and split as categories."""
    return _table(manifest).to_pandas()


def write(manifest: Manifest, path: Path) -> None:
    """Write the manifest as a Parquet file."""
    pq.write_table(_table(manifest), path)


def read(path: Path) -> Manifest:
    """Read what `write` wrote.

    Raises:
        pyarrow.ArrowException, OSError, KeyError, ValueError: this is not a manifest.
    """
    table = pq.read_table(path)
    return {name: _codes(table.column(name), CATEGORIES.get(name)) for name in COLUMNS}


def digest(manifest: Manifest) -> str:
    """SHA-256 over names and values of the columns: the Parquet file's bytes change with the library, these do not."""
    total = hashlib.sha256()
    for name in COLUMNS:
        total.update(f"{name} {len(manifest[name])} {CATEGORIES.get(name)}\n".encode())
        total.update(np.ascontiguousarray(manifest[name], "<i8"))
    return total.hexdigest()


def _table(manifest: Manifest) -> pa.Table:
    def column(name: str) -> pa.Array:
        values = pa.array(manifest[name], pa.int8() if name in CATEGORIES else pa.int64())
        return pa.DictionaryArray.from_arrays(values, list(CATEGORIES[name])) if name in CATEGORIES else values

    return pa.table({name: column(name) for name in COLUMNS})


def _codes(column: pa.ChunkedArray, categories: tuple[str, ...] | None) -> np.ndarray:
    if categories is None:
        return column.to_numpy().astype(np.int64, casting="safe")
    column = column.unify_dictionaries().combine_chunks()
    code_of = np.array([categories.index(name) for name in column.dictionary.to_pylist()])
    return code_of[column.indices.to_numpy()]
