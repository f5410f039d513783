"""The manifest: one row per sample that says who sees it, when and what for. The manifest is the stream.

    sample      int64     index into the source's arrays
    label       int64     the source's label
    task        category  what is asked of the sample: "classify"
    client      int64     -1 for public samples
    experience  int64     -1 for public samples
    split       category  "train", "test" or "public"

In memory it is a dictionary of int64 arrays, task and split as places in TASKS and SPLITS; pandas and pandera are
imported only to check it, once per build.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from errors import InputError
from randomness import numpy_generator
from streams.parameters import StreamParameters
from streams.partition import apportion, shares

TASKS = ("classify",)
SPLITS = ("train", "test", "public")
TRAIN, TEST, PUBLIC = range(3)
CATEGORIES = {"task": TASKS, "split": SPLITS}
COLUMNS = ("sample", "label", "task", "client", "experience", "split")

Manifest = dict[str, np.ndarray]


def deal(labels: np.ndarray, is_test: np.ndarray | None, plan: np.ndarray, parameters: StreamParameters) -> Manifest:
    """Deal every sample of a source to a client and an experience, or to the public.

    The training and the test samples of a class are shared out alike, so that a client is tested on what it trains.

    Args:
        labels: (N,) int64.
        is_test: (N,) bool, or None to hold out `parameters.test` of every class.
        plan: (clients, classes), from `scenario.plan`.
    """
    split = _splits(labels, is_test, parameters)
    client = np.full(len(labels), -1)
    experience = np.full(len(labels), -1)
    for label in range(plan.shape[1]):
        generator = numpy_generator(parameters.seed, "partition", "class", label)
        share = shares(parameters.partition, parameters.clients, generator)
        for part in (TRAIN, TEST):
            samples = generator.permutation(np.flatnonzero((labels == label) & (split == part)))
            owner = np.repeat(np.arange(parameters.clients), apportion(len(samples), share, generator))
            client[samples] = owner
            experience[samples] = plan[owner, label]
    sample = np.arange(len(labels))
    task = np.zeros_like(sample)
    return {"sample": sample, "label": labels, "task": task, "client": client, "experience": experience, "split": split}


def _splits(labels: np.ndarray, is_test: np.ndarray | None, parameters: StreamParameters) -> np.ndarray:
    """(N,) places in SPLITS; test and public samples are taken from every class in proportion."""
    split = np.full(len(labels), TRAIN)

    def take(part: int, fraction: float) -> None:
        generator = numpy_generator(parameters.seed, "split", SPLITS[part])
        left = np.bincount(labels[split == TRAIN])
        total = round(fraction * left.sum())
        for label, count in enumerate(apportion(total, left / left.sum(), generator)):
            split[generator.permutation(np.flatnonzero((labels == label) & (split == TRAIN)))[:count]] = part

    if is_test is None:
        take(TEST, parameters.test)
    else:
        split[is_test] = TEST
    take(PUBLIC, parameters.public)
    return split


def check(manifest: Manifest, labels: np.ndarray, plan: np.ndarray) -> None:
    """Check all that the manifest promises.

    Args:
        labels: (N,) the source's labels.
        plan: (clients, classes), from `scenario.plan`.
    Raises:
        InputError: names the promise that is broken and the first sample that breaks it, or the empty client.
    """
    from pandera.errors import SchemaError

    try:
        _schema(labels, plan).validate(to_pandas(manifest))
    except SchemaError as error:
        cases = error.failure_cases
        first = "" if isinstance(cases, str) or cases["index"].isna().all() else f" (first at row {cases['index'][0]})"
        raise InputError(f"stream manifest: {error.check.error or error}{first}") from error
    trained = np.bincount(manifest["client"][manifest["split"] == TRAIN], minlength=len(plan))
    empty = np.flatnonzero(trained == 0)
    if len(empty):
        others = f" (and {len(empty) - 1} more)" if len(empty) > 1 else ""
        raise InputError(
            f"client {empty[0]}{others} is left with no training sample: {trained.sum()} samples are shared out among "
            f"{len(plan)} clients; use fewer clients, a larger partition.alpha or partition.min_share"
        )
    experiences = int(plan.max()) + 1
    tested = np.bincount(manifest["experience"][manifest["split"] == TEST], minlength=experiences)
    if not tested.all():
        raise InputError(f"experience {np.flatnonzero(tested == 0)[0]} has no test sample; hold out more (test)")


def _schema(labels: np.ndarray, plan: np.ndarray):
    from pandera.pandas import Category, Check, Column, DataFrameSchema

    clients, classes = plan.shape
    experiences = int(plan.max()) + 1

    def in_range(below: int, least: int = 0) -> Check:
        return Check.in_range(least, below, include_max=False, error=f"is outside {least}..{below - 1}")

    def column(kind, *checks: Check, name: str) -> Column:
        for each in checks:
            each.error = f"{name} {each.error}"
        return Column(kind, checks, nullable=False)

    def owned(frame):
        return (frame["split"] == "public") == (frame["client"] == -1)

    def placed(frame):
        held = frame["split"] != "public"
        wanted = np.where(held, plan[frame["client"].where(held, 0), frame["label"]], -1)
        return frame["experience"] == wanted

    once = Check(lambda sample: ~sample.duplicated(), error="is given to two clients, experiences or splits")
    return DataFrameSchema(
        {
            "sample": column("int64", in_range(len(labels)), once, name="a sample"),
            "label": column("int64", in_range(classes), name="a label"),
            "task": column(Category, Check.isin(TASKS, error=f"is not one of {TASKS}"), name="a task"),
            "client": column("int64", in_range(clients, -1), name="a client"),
            "experience": column("int64", in_range(experiences, -1), name="an experience"),
            "split": column(Category, Check.isin(SPLITS, error=f"is not one of {SPLITS}"), name="a split"),
        },
        checks=[
            Check(lambda frame: frame["label"] == labels[frame["sample"]], error="a label is not the source's"),
            Check(owned, error="a public sample belongs to a client, or another sample to none"),
            Check(placed, error="a class is not in the experience where the scenario puts it"),
        ],
        strict=True,
    )


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
