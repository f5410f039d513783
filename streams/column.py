"""Columns of labels and of clients, as the files have them, and the numbers 0, 1, ... that they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from errors import InputError, nearest

MOST_CLASSES = 100_000  # a larger label is more likely an identifier in the wrong column


@dataclass(frozen=True)
class Column:
    """One column of one raw file.

    Attributes:
        name: the file, as messages show it.
        values: (n,) int64, or (n,) objects that are all `str`.
        lines: (n,) where each row begins in a text file, counted from 1.
        first: what the file's integer labels count from.
    """

    name: str
    values: np.ndarray
    lines: Sequence[int] | None = None
    first: int = 0

    @property
    def is_integer(self) -> bool:
        return self.values.dtype.kind == "i"

    def at(self, row: int) -> str:
        """The file and the row, counted from 0, as messages begin."""
        return f"{self.name}, row {row}" + (f" (line {self.lines[row]})" if self.lines is not None else "")


def labels(train: list[Column], test: list[Column], classes: int | None) -> np.ndarray:
    """(N,) int64 in 0..classes-1: the labels of all files, those for training first.

    Integers stand for themselves (less `first`). Names are numbered in the sorted order of the training files' names.

    Args:
        train, test: the files' label columns; `train` holds one at least.
        classes: the size of the label space. Without it every class from 0 to the largest must have a training
            sample: a gap is more likely a file that counts from 1.
    Raises:
        InputError: names the file and the first wrong row.
    """
    _all_of_one_kind(train + test, "label")
    if train[0].is_integer:
        numbers = [_in_range(column, classes) for column in train + test]
        if classes is None:
            _without_gaps(train, numbers)
        return np.concatenate(numbers)
    names = sorted(set().union(*(column.values for column in train)))
    if classes is not None and len(names) > classes:
        raise InputError(f"{train[0].name}: {len(names)} names of classes, but classes is {classes}")
    number = {name: label for label, name in enumerate(names)}
    for column in test:
        for row, name in enumerate(column.values):
            if name not in number:
                near = nearest(name, names) if len(names) < 1000 else "expected one of the training labels"
                raise InputError(f"{column.at(row)}: label {name!r} has no training sample; {near}")
    return np.array([number[name] for column in train + test for name in column.values], np.int64)


def clients(columns: list[Column]) -> np.ndarray:
    """(N,) int64: the clients of all files, numbered from 0 in the sorted order of the column's values."""
    _all_of_one_kind(columns, "client")
    values = np.concatenate([column.values for column in columns])
    if columns[0].is_integer:
        return np.unique(values, return_inverse=True)[1].astype(np.int64)
    number = {value: client for client, value in enumerate(sorted(set(values)))}
    return np.array([number[value] for value in values], np.int64)


def parsed(name: str, texts: list[str], lines: list[int], key: str, first: int = 0) -> Column:
    """The column of a text file: integers where its first value is one, else names.

    Raises:
        InputError: a value is empty, or is no integer in a column that began with one.
    """
    column = Column(name, np.array(texts, object), lines, first)
    for row, text in enumerate(texts):
        if not text:
            raise InputError(f"{column.at(row)}: no {key}")
        if is_integer(texts[0]) and not is_integer(text):
            raise InputError(f"{column.at(row)}: {key} {text!r} is not an integer, as the first row's is ({texts[0]})")
    if not is_integer(texts[0]):
        return column
    return Column(name, np.array([int(text) for text in texts], np.int64), lines, first)


def is_integer(text: str) -> bool:
    """Whether `text` is what int64 can hold, written in ASCII digits."""
    return text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 18


def _all_of_one_kind(columns: list[Column], key: str) -> None:
    for column in columns:
        if column.is_integer != columns[0].is_integer:
            kinds = ["integers" if each.is_integer else "names" for each in (columns[0], column)]
            raise InputError(f"{column.name}: its {key}s are {kinds[1]}, those of {columns[0].name} are {kinds[0]}")


def _in_range(column: Column, classes: int | None) -> np.ndarray:
    numbers = column.values - column.first
    below = classes or MOST_CLASSES
    wrong = np.flatnonzero((numbers < 0) | (numbers >= below))
    if len(wrong):
        least, most = column.first, below - 1 + column.first
        raise InputError(f"{column.at(wrong[0])}: label {column.values[wrong[0]]} is outside {least}..{most}")
    return numbers


def _without_gaps(train: list[Column], numbers: list[np.ndarray]) -> None:
    largest = max(int(each.max()) for each in numbers)
    trained = np.bincount(np.concatenate(numbers[: len(train)]), minlength=largest + 1)
    if not trained.all():
        first = train[0].first
        missing = np.flatnonzero(trained == 0)[0] + first
        raise InputError(
            f"{train[0].name}: label {missing} has no training sample, and the largest label is {largest + first}; "
            f"labels count from {first} without a gap, unless classes says how many there are"
        )
