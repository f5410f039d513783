"""Labels other than the stream's own, for the general tasks of a foundation model: digits' parity, CIFAR-100's coarse
classes. They are read when a foundation model is made or measured; no stream depends on them.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from errors import InputError, nearest
from streams import column, csv_table, parquet
from streams.parameters import StreamParameters
from streams.parquet_file import ParquetPart
from streams.rawfile import shown

AGENCY = re.compile(r"\b(AP|Reuters|AFP)\b", re.IGNORECASE)  # as a word of a story, mostly at its beginning
AGENCIES = ("ap", "reuters", "afp")
DIGITS = {"parity": lambda digit: digit % 2, "above_four": lambda digit: digit > 4}


def general_labels(task: str, parameters: StreamParameters, labels: np.ndarray, root: Path) -> np.ndarray:
    """(N,) int64 from 0, the labels of all samples of a stream's source in the general task `task`.

    Args:
        task: `parity` or `above_four` for digits, a column of integers or names for Parquet, `agency` for CSV:
            which news agency a story names first (1 AP, 2 Reuters, 3 AFP; 0 none).
        labels: (N,) int64, the source's own labels.
    Raises:
        InputError: the source has no such labels.
    """
    if parameters.source == "digits":
        if task not in DIGITS:
            raise InputError(f"foundation.general: digits have no task '{task}'; {nearest(task, DIGITS)}")
        return DIGITS[task](labels).astype(np.int64)
    if parameters.source.startswith("parquet:"):
        return _column(task, parameters, root)
    if parameters.source.startswith("csv:") and task == "agency":
        return np.array([_agency(text) for text in csv_table.all_texts(parameters, root)], dtype=np.int64)
    raise InputError(
        f"foundation.general: source {parameters.source} has no labels but its own (got '{task}'); "
        "digits, parquet:PATH and csv:PATH ('agency') have"
    )


def _agency(text: str) -> int:
    found = AGENCY.search(text)
    return 1 + AGENCIES.index(found.group(1).lower()) if found else 0


def _column(task: str, parameters: StreamParameters, root: Path) -> np.ndarray:
    files = parquet.files(parameters, root)
    parts = {name: ParquetPart(path, shown(path, root), parameters) for name, path in files.items()}
    found = {}
    for name, part in parts.items():
        if task not in part.columns:
            raise InputError(f"foundation.general: {part.name} has no column '{task}'; {nearest(task, part.columns)}")
        if task not in part.keys:
            raise InputError(
                f"foundation.general: {part.name}: '{task}' is {part.columns[task]}, not a column of integers or names"
            )
        if task == part.label:
            raise InputError(f"foundation.general: '{task}' is the column of the stream's own labels; name another")
        found[name] = part.column(task, "label")
    train = [found[name] for name in parts if not name.startswith("test")]
    test = [found[name] for name in parts if name.startswith("test")]
    return column.labels(train, test, None)
