"""What all sources need of their raw files: where they lie, a name to show, a digest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from streams.parameters import StreamParameters


def located(parameters: StreamParameters, root: Path) -> Path:
    """PATH of the source 'KIND:PATH': absolute, or relative to the project folder."""
    return root / parameters.source.partition(":")[2].strip()


def shown(path: Path, root: Path) -> str:
    """The path as a person would write it: relative to the project folder where it lies inside."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def sha256(path: Path) -> str:
    """SHA-256 over the file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_line(error: Exception) -> str:
    """A library's error without its line breaks and final stop, to stand inside a sentence."""
    return str(error).strip().split("\n")[0].rstrip(".")
