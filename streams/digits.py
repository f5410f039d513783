"""scikit-learn's handwritten digits: 1797 grey images of 8 x 8, ten classes, no test split of their own.

The raw file is scikit-learn's own, copied byte for byte to where DVC tracks it, so that nothing is downloaded and a
later scikit-learn cannot change the data unnoticed.
"""

from __future__ import annotations

import gzip
import shutil
import zlib
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import numpy as np

from errors import InputError
from streams import column
from streams.arrays import Images
from streams.parameters import StreamParameters
from streams.rawfile import shown

RAW = Path("data/digits/digits.csv.gz")
OPTIONS = {"classes", "size"}
SIDE = 8
GREYS = 16  # the raw values are 0..16


def files(parameters: StreamParameters, root: Path) -> dict[str, Path]:
    """The raw file, copied from the installed scikit-learn if it is missing."""
    path = root / RAW
    if not path.is_file():
        package = find_spec("sklearn")  # found, not imported: importing it takes a second
        if package is None:
            raise InputError(f"{RAW}: no such file, and scikit-learn, which brings it, is not installed")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid4().hex}")
        shutil.copyfile(Path(package.submodule_search_locations[0]) / "datasets/data/digits.csv.gz", temporary)
        temporary.replace(path)
    return {"train": path}


def decode(parameters: StreamParameters, root: Path, folder: Path) -> None:
    """Write inputs.npy (1797, 1, 8, 8) uint8 and labels.npy (1797,) int64 into `folder`.

    Raises:
        InputError: the raw file is damaged, or a label is not below `classes`.
    """
    path = files(parameters, root)["train"]
    name = shown(path, root)
    try:
        with gzip.open(path, "rt") as file:
            table = np.loadtxt(file, delimiter=",", ndmin=2)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"{name}: not readable as a gzipped table ({error}); delete it to have it made anew"
        ) from error
    if table.shape[1:] != (SIDE * SIDE + 1,) or len(table) == 0:
        raise InputError(f"{name}: expected rows of {SIDE * SIDE} pixels and a label; delete it to have it made anew")
    labels = column.Column(name, table[:, -1].astype(np.int64))
    np.save(folder / "labels.npy", column.labels([labels], [], parameters.classes))
    images = np.rint(table[:, :-1] * (255 / GREYS)).astype(np.uint8).reshape(-1, 1, SIDE, SIDE)
    with Images(folder / "inputs.npy", parameters.size) as inputs:
        for row, image in enumerate(images):
            inputs.add(image, f"{name}, row {row}")
