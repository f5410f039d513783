"""Image files in folders: train/CLASS/*.png or *.jpg, and optionally test/CLASS/*.

The classes are the sorted names of the folders in train/ [field: torchvision's ImageFolder], so '10' comes before '2'.
Names that begin with a dot are left alone; anything else that does not belong is refused rather than left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from errors import InputError, nearest
from streams.arrays import Images
from streams.parameters import StreamParameters
from streams.pixels import UNDECODABLE, decoded, is_grey
from streams.rawfile import first_line, located, shown

OPTIONS = {"classes", "size"}
SUFFIXES = (".png", ".jpg", ".jpeg")  # in capitals too


def files(parameters: StreamParameters, root: Path) -> dict[str, Path]:
    """All images by their names 'train/CLASS/FILE' and 'test/CLASS/FILE', sorted, those for training first.

    Raises:
        InputError: no such folder, a class without images, or something that is not an image in a class's folder.
    """
    path = located(parameters, root)
    if not (path / "train").is_dir():
        raise InputError(f"{shown(path / 'train', root)}: no such folder (wanted by source {parameters.source!r})")
    found = {}
    classes = []
    for part in ("train", "test"):
        if not (path / part).is_dir():
            continue
        folders = _visible(path / part)
        for folder in folders:
            name = shown(folder, root)
            if not folder.is_dir():
                raise InputError(f"{name}: a file where only folders, one for each class, are expected")
            if part == "test" and folder.name not in classes:
                raise InputError(f"{name}: no such class in train; {nearest(folder.name, classes)}")
            images = _visible(folder)
            for image in images:
                if not image.is_file() or image.suffix.lower() not in SUFFIXES:
                    raise InputError(f"{shown(image, root)}: expected a file that ends in {', '.join(SUFFIXES)}")
                found[f"{part}/{folder.name}/{image.name}"] = image
            if not images:
                raise InputError(f"{name}: holds no images")
        if not folders:
            raise InputError(f"{shown(path / part, root)}: holds no classes; expected a folder of images for each")
        classes = classes or [folder.name for folder in folders]
    if parameters.classes is not None and len(classes) > parameters.classes:
        raise InputError(
            f"{shown(path / 'train', root)}: holds {len(classes)} classes, but classes is {parameters.classes}"
        )
    return found


def decode(parameters: StreamParameters, root: Path, folder: Path) -> None:
    """Write inputs.npy (N, C, H, W) uint8, labels.npy (N,) int64 and, if there is test/, split.npy (N,) bool.

    C is 1 if all images are grey, else 3.

    Raises:
        InputError: names the image that cannot be decoded, or is not of the first one's size.
    """
    images = files(parameters, root)
    parts, classes = zip(*(name.split("/")[:2] for name in images), strict=True)
    number = {name: label for label, name in enumerate(sorted({*classes}))}
    np.save(folder / "labels.npy", np.array([number[name] for name in classes], np.int64))
    if "test" in parts:
        np.save(folder / "split.npy", np.array(parts) == "test")

    def attempt(read, path: Path):
        try:
            return read(path)
        except UNDECODABLE as error:
            reason = first_line(error).replace(str(path), path.name)
            raise InputError(f"{shown(path, root)}: undecodable image ({reason})") from error

    greys = [attempt(is_grey, path) for path in images.values()]  # reads the headers only
    grey = all(greys)
    with Images(folder / "inputs.npy", parameters.size) as inputs:
        for path in images.values():
            inputs.add(attempt(lambda image: decoded(image, grey), path), shown(path, root))


def _visible(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
