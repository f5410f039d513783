"""What all sources need of their raw files: a name to show, a digest, and labels that are in range."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from errors import InputError

MOST_CLASSES = 100_000  # a larger label is more likely an identifier in the wrong column


def shown(path: Path, root: Path) -> str:
    """The path as a person would write it: relative to the project folder where it lies inside."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def sha256(path: Path) -> str:
    """SHA-256 over the file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_labels(labels: np.ndarray, classes: int | None, name: str) -> None:
    """Labels (N,) are in 0..classes-1; without `classes`, in 0..MOST_CLASSES-1.

    Raises:
        InputError: names the file and the first wrong row, counted from 0.
    """
    below = classes or MOST_CLASSES
    wrong = np.flatnonzero((labels < 0) | (labels >= below))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(f"{name}, row {row}: label {labels[row]} is outside 0..{below - 1}")
