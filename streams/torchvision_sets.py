"""torchvision's image data sets: downloaded once, checked against torchvision's MD5 sums, read by torchvision.

The archives lie in data/torchvision/NAME, as their authors publish them, and are versioned with the rest of data/. They
are unpacked only to be decoded. torch is imported only to download and to decode, never to open a decoded source.
"""

from __future__ import annotations

import gzip
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from errors import InputError, nearest
from streams import column
from streams.arrays import Images
from streams.parameters import StreamParameters
from streams.torchvision_archives import ARCHIVES, archives, check

if TYPE_CHECKING:
    from torchvision.datasets import VisionDataset

OPTIONS = {"source", "classes", "size"}  # `source` holds no path here; EMNIST's splits share one archive
EMNIST_SPLITS = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")  # the first is the default


def files(parameters: StreamParameters, root: Path) -> dict[str, Path]:
    """The archives of the data set by their names, downloaded where they are missing.

    Raises:
        InputError: torchvision has no such data set here, or an archive is missing and cannot be downloaded.
    """
    return archives(_named(parameters)[0], root)


def decode(parameters: StreamParameters, root: Path, folder: Path) -> None:
    """Write inputs.npy (N, C, H, W) uint8, labels.npy (N,) int64 and split.npy (N,) bool.

    Memory: one part of the data set at a time, as torchvision holds it (CIFAR100: 0.15 GB).

    Raises:
        InputError: an archive is not the one that torchvision knows.
    """
    name, split = _named(parameters)
    paths = files(parameters, root)
    check(name, paths, root)  # before torchvision unpickles what is inside
    unpacked = folder / "unpacked"
    parts = []
    with Images(folder / "inputs.npy", parameters.size) as inputs:
        for train in (True, False):
            images, labels = pixels_and_labels(opened(name, split, train, paths, unpacked))
            parts.append(column.Column(f"{parameters.source} {'train' if train else 'test'}", labels))
            for row, image in enumerate(images):
                inputs.add(image, f"{parts[-1].name}, row {row}")
    shutil.rmtree(unpacked)
    np.save(folder / "labels.npy", column.labels(parts[:1], parts[1:], parameters.classes))
    np.save(folder / "split.npy", np.repeat([False, True], [len(part.values) for part in parts]))


def opened(name: str, split: str | None, train: bool, paths: dict[str, Path], unpacked: Path) -> VisionDataset:
    """torchvision's data set, unpacked into the folder `unpacked` unless that was done before.

    `download=True` finds the archives in place, with the right MD5 sums, and only unpacks them.
    """
    from torchvision import datasets

    kind = getattr(datasets, name)
    place = unpacked / name / "raw" if issubclass(kind, datasets.MNIST) else unpacked
    if not place.is_dir():
        place.mkdir(parents=True)
        for archive, path in paths.items():
            (place / archive).symlink_to(path.resolve())
    if name == "SVHN":
        return kind(unpacked, split="train" if train else "test", download=True)
    if name != "EMNIST":
        return kind(unpacked, train=train, download=True)
    with zipfile.ZipFile(paths["gzip.zip"]) as archive:  # torchvision would unpack all six splits, 2 GB
        for content in ("images-idx3", "labels-idx1"):
            member = f"emnist-{split}-{'train' if train else 'test'}-{content}-ubyte"
            with (
                archive.open(f"gzip/{member}.gz") as packed,
                gzip.open(packed) as plain,
                (place / member).open("wb") as file,
            ):
                shutil.copyfileobj(plain, file)
    return kind(unpacked, split=split, train=train)


def pixels_and_labels(dataset: VisionDataset) -> tuple[np.ndarray, np.ndarray]:
    """(N, C, H, W) uint8 and (N,) int64 of one of torchvision's data sets.

    EMNIST's images are stored with rows and columns exchanged and its letters counted from 1: here they stand upright
    and count from 0 [ours].
    """
    from torchvision import datasets

    if isinstance(dataset, datasets.SVHN):
        return dataset.data, dataset.labels
    labels = np.asarray(dataset.targets, np.int64)
    if isinstance(dataset, datasets.CIFAR10):
        return dataset.data.transpose(0, 3, 1, 2), labels
    images = dataset.data.numpy()[:, None]
    if isinstance(dataset, datasets.EMNIST):
        return images.transpose(0, 1, 3, 2), labels - (dataset.split == "letters")
    return images, labels


def _named(parameters: StreamParameters) -> tuple[str, str | None]:
    """The data set's name and, of EMNIST, its split."""
    whole = parameters.source.removeprefix("torchvision:")
    name, _, split = whole.partition("/")
    if name not in ARCHIVES:
        by_capitals = {known.lower(): known for known in ARCHIVES}
        near = f"did you mean {by_capitals[name.lower()]}?" if name.lower() in by_capitals else nearest(name, ARCHIVES)
        raise InputError(f"source {parameters.source!r}: no data set {name!r} among torchvision's; {near}")
    if split and name != "EMNIST":
        raise InputError(
            f"source {parameters.source!r}: only EMNIST has splits to choose from; write torchvision:{name}"
        )
    if split and split not in EMNIST_SPLITS:
        raise InputError(
            f"source {parameters.source!r}: EMNIST has no split {split!r}; {nearest(split, EMNIST_SPLITS)}"
        )
    return name, (split or EMNIST_SPLITS[0]) if name == "EMNIST" else None
