"""The archives of torchvision's data sets: their names, addresses and MD5 sums, and how they come here."""

from __future__ import annotations

import hashlib
import sys
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from uuid import uuid4

from errors import InputError
from streams.rawfile import first_line, shown

RAW = Path("data/torchvision")
IDX = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
ARCHIVES = {
    "CIFAR10": ("cifar-10-python.tar.gz",),
    "CIFAR100": ("cifar-100-python.tar.gz",),
    "EMNIST": ("gzip.zip",),
    "FashionMNIST": IDX,
    "KMNIST": IDX,
    "MNIST": IDX,
    "SVHN": ("train_32x32.mat", "test_32x32.mat"),
}
PATIENCE = 30.0  # seconds without an answer before a download is given up


def archives(name: str, root: Path) -> dict[str, Path]:
    """The archives of the data set by their names, downloaded where they are missing.

    Raises:
        InputError: an archive is missing and cannot be downloaded; no part of it is left.
    """
    paths = {archive: root / RAW / name / archive for archive in ARCHIVES[name]}
    for archive, path in paths.items():
        if not path.is_file():
            _download(name, archive, path, root)
    return paths


def check(name: str, paths: dict[str, Path], root: Path) -> None:
    """Check the archives' MD5 sums against torchvision's.

    Raises:
        InputError: an archive is cut off, or another file.
    """
    for archive, path in paths.items():
        expected = known(name)[archive][1]
        with path.open("rb") as file:
            found = hashlib.file_digest(file, _md5).hexdigest()
        if found != expected:
            raise InputError(
                f"{shown(path, root)}: not the whole file that torchvision knows (MD5 {found}, expected {expected}); "
                "delete it to have it downloaded again"
            )


def known(name: str) -> dict[str, tuple[list[str], str]]:
    """Of every archive its addresses and MD5 sum, as torchvision has them."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    if name == "SVHN":
        parts = [kind.split_list[part] for part in ("train", "test")]
        return {file: ([address], md5) for address, file, md5 in parts}
    if name == "EMNIST":
        return {kind.url.rpartition("/")[2]: ([kind.url], kind.md5)}
    if issubclass(kind, datasets.MNIST):
        return {file: ([f"{mirror}{file}" for mirror in kind.mirrors], md5) for file, md5 in kind.resources}
    return {kind.filename: ([kind.url], kind.tgz_md5)}


def _download(name: str, archive: str, path: Path, root: Path) -> None:
    addresses, expected = known(name)[archive]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{archive}.{uuid4().hex}")
    reasons = []
    try:
        for address in addresses:
            print(f"downloading {address}", file=sys.stderr)
            try:
                _fetch(address, temporary, expected)
            except (OSError, HTTPException, ValueError) as error:
                reasons.append(f"{address}: {first_line(error)}")
                continue
            temporary.replace(path)
            return
    finally:
        temporary.unlink(missing_ok=True)
        for folder in (path.parent, root / RAW, root / RAW.parent):
            with suppress(OSError):  # not empty
                folder.rmdir()
    missing = [other for other in ARCHIVES[name] if not (root / RAW / name / other).is_file()]
    raise InputError(
        f"source torchvision:{name}: cannot download {archive} ({'; '.join(reasons)}); where there is no network, put "
        f"{', '.join(missing)} into {RAW / name}/ and run the same command again"
    )


def _fetch(address: str, path: Path, expected: str) -> None:
    md5 = _md5()
    request = urllib.request.Request(address, headers={"User-Agent": "fcl"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer, path.open("wb") as file:
        while block := answer.read(1 << 20):
            md5.update(block)
            file.write(block)
    if md5.hexdigest() != expected:
        raise ValueError(f"what came is not the file that torchvision knows (MD5 {md5.hexdigest()})")


def _md5():
    return hashlib.md5(usedforsecurity=False)
