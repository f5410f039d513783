"""Sources: data sets decoded once into memory-mapped uint8 arrays.

A source is known by its digest: SHA-256 over the bytes of its raw files and the options that change the arrays. The
arrays lie in `built/sources/<digest>`, where all processes that open them share the same pages of memory.

    python -m streams.sources       put the digits' raw file into data/ (part of `make setup`)

Adding a source is a module with three things, its line in KINDS and one in `parameters.SOURCES`:

    OPTIONS                             the parameters that change its arrays
    files(parameters, root)             its raw files by name: 'train', 'test', or other names if they matter
    decode(parameters, root, folder)    write inputs.npy, labels.npy and, where it has them, split.npy and clients.npy

Source 'tasks' has no raw files of its own: it is made from other sources, and known by their digests.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from errors import InputError
from multitask import Layout
from streams import csv_table, digits, image_folder, parquet, task_source, torchvision_sets
from streams.atomic import written_whole
from streams.parameters import StreamParameters
from streams.rawfile import sha256

KINDS = {
    "csv": csv_table,
    "digits": digits,
    "folder": image_folder,
    "parquet": parquet,
    "tasks": task_source,
    "torchvision": torchvision_sets,
}
FORMAT = 1  # part of every digest: raise it when the same raw files are decoded to other arrays
CHOICES = ("image", "label", "text", "client", "length", "size")  # options that not every source has
# What came after FORMAT 1's first digests is part of a digest only where it is used.
LATER = ("text", "client", "length", "size")
PLAIN_NAMES = (["train"], ["train", "test"])


@dataclass(frozen=True)
class Source:
    """A decoded data set of N images, texts or records.

    Attributes:
        name: what the parameters call it, such as "digits" or "parquet:PATH".
        digest: 64 hexadecimal digits that name raw files and options.
        inputs: memory-mapped and read-only: images (N, C, H, W) uint8 in 0..255, or texts (N, length) uint8, their
            UTF-8 bytes and then zeros, or records (N, layout.width) uint8.
        labels: (N,) int64 in 0..classes-1.
        is_test: (N,) bool where the source brings its own test split, else None.
        classes: the number of classes.
        natural_clients: (N,) int64 where the data say whose a sample is (`client`), else None: the owners, numbered
            from 0 in the sorted order of their names.
        layout: how a record is laid out; None for images and texts.
    """

    name: str
    digest: str
    inputs: np.ndarray
    labels: np.ndarray
    is_test: np.ndarray | None
    classes: int
    natural_clients: np.ndarray | None
    layout: Layout | None = None


def load(parameters: StreamParameters, root: Path) -> Source:
    """The source that `parameters` name (source and its options), decoded unless that was done before.

    Raises:
        InputError: a file is missing or damaged, a column is unknown, a label, an image or a text is wrong, or an
            option is set that the source does not have. Then nothing is left in the cache.
    """
    kind = KINDS[parameters.source.partition(":")[0]]
    for name in CHOICES:
        if name not in kind.OPTIONS and getattr(parameters, name) is not None:
            takes = ", ".join(sorted(kind.OPTIONS - {"source"}))
            raise InputError(f"{name} is set, but source {parameters.source!r} takes only {takes}")
    if kind is task_source:
        parts = {name: load(part, root) for name, part in task_source.parts(parameters).items()}
        identity = {
            "kind": kind.__name__,
            "parts": {name: part.digest for name, part in parts.items()},
            "options": task_source.identity(parameters),
        }
        decode = partial(task_source.decode, parameters, sources=parts)
    else:
        identity = _identity(parameters, kind, root)
        decode = partial(kind.decode, parameters, root)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = _folder(digest, root)
    if not folder.is_dir():
        with written_whole(folder, replace=False) as temporary:
            decode(folder=temporary)
    return _open(parameters, digest, root)


def _identity(parameters: StreamParameters, kind: ModuleType, root: Path) -> dict[str, Any]:
    """What names a source with raw files: their bytes, and the options that change the arrays."""
    raw = kind.files(parameters, root)
    options = parameters.model_dump(mode="json", include=kind.OPTIONS)
    identity = {
        "format": FORMAT,
        "kind": kind.__name__,
        "files": [sha256(path) for path in raw.values()],
        "options": {name: value for name, value in options.items() if name not in LATER or value is not None},
    }
    if list(raw) not in PLAIN_NAMES:
        identity["names"] = list(raw)
    return identity


def load_known(parameters: StreamParameters, digest: str, root: Path) -> Source:
    """The source as it was under `digest`: from the cache without a look at the raw files, else from the raw files.

    What comes back has another digest if the raw files have changed since.
    """
    return _open(parameters, digest, root) if _folder(digest, root).is_dir() else load(parameters, root)


def _folder(digest: str, root: Path) -> Path:
    return root / "built" / "sources" / digest


def _open(parameters: StreamParameters, digest: str, root: Path) -> Source:
    folder = _folder(digest, root)
    labels = np.load(folder / "labels.npy")
    split, clients, laid_out = folder / "split.npy", folder / "clients.npy", folder / "layout.json"
    layout = Layout.from_record(json.loads(laid_out.read_text())) if laid_out.is_file() else None
    return Source(
        name=parameters.source,
        digest=digest,
        inputs=np.load(folder / "inputs.npy", mmap_mode="r"),
        labels=labels,
        is_test=np.load(split) if split.is_file() else None,
        classes=layout.classes if layout else parameters.classes or int(labels.max()) + 1,
        natural_clients=np.load(clients) if clients.is_file() else None,
        layout=layout,
    )


if __name__ == "__main__":
    print(*digits.files(StreamParameters(source="digits", clients=1, experiences=1), Path.cwd()).values())
