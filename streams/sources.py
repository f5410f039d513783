"""Sources: data sets decoded once into memory-mapped uint8 arrays.

A source is known by its digest: SHA-256 over the bytes of its raw files and the options that change the arrays. The
arrays lie in `built/sources/<digest>`, where all processes that open them share the same pages of memory.

    python -m streams.sources       put the digits' raw file into data/ (part of `make setup`)

Adding a source is a module with OPTIONS, files() and decode(), and its line in KINDS.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streams import digits, parquet
from streams.atomic import written_whole
from streams.parameters import StreamParameters
from streams.rawfile import sha256

KINDS = {"digits": digits, "parquet": parquet}
FORMAT = 1  # part of every digest: raise it when the same raw files are decoded to other arrays


@dataclass(frozen=True)
class Source:
    """A decoded data set of N images.

    Attributes:
        name: what the parameters call it: "digits" or "parquet:PATH".
        digest: 64 hexadecimal digits that name raw files and options.
        inputs: (N, C, H, W) uint8 in 0..255, memory-mapped and read-only.
        labels: (N,) int64 in 0..classes-1.
        is_test: (N,) bool where the source brings its own test split, else None.
        classes: the number of classes.
    """

    name: str
    digest: str
    inputs: np.ndarray
    labels: np.ndarray
    is_test: np.ndarray | None
    classes: int


def load(parameters: StreamParameters, root: Path) -> Source:
    """The source that `parameters` name (source, image, label, classes), decoded unless that was done before.

    Raises:
        InputError: a file is missing or damaged, a column is unknown, a label or an image is wrong. Then nothing
            is left in the cache.
    """
    kind = KINDS[parameters.source.partition(":")[0]]
    identity = {
        "format": FORMAT,
        "kind": kind.__name__,
        "files": [sha256(path) for path in kind.files(parameters, root)],
        "options": parameters.model_dump(mode="json", include=kind.OPTIONS),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = _folder(digest, root)
    if not folder.is_dir():
        with written_whole(folder, replace=False) as temporary:
            kind.decode(parameters, root, temporary)
    return _open(parameters, digest, root)


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
    split = folder / "split.npy"
    return Source(
        name=parameters.source,
        digest=digest,
        inputs=np.load(folder / "inputs.npy", mmap_mode="r"),
        labels=labels,
        is_test=np.load(split) if split.is_file() else None,
        classes=parameters.classes or int(labels.max()) + 1,
    )


if __name__ == "__main__":
    print(*digits.files(StreamParameters(source="digits", clients=1, experiences=1), Path.cwd()))
