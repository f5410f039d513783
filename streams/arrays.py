"""Arrays that grow row by row on disk, so that decoding needs the memory of one row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from errors import InputError


class Rows:
    """A .npy file of uint8 rows of one shape; how many there will be need not be known before.

    with Rows(path) as rows:
        rows.append(row)
    """

    def __init__(self, path: Path) -> None:
        self.count = 0
        self.shape: tuple[int, ...] | None = None
        self._file = path.open("wb")

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        with self._file:
            if kind is None and self.shape is not None:
                self._write_header()  # NumPy leaves room for a longer first axis, so the rows stay where they are

    def append(self, row: np.ndarray) -> None:
        """Write one more row, (*shape,) uint8."""
        if self.shape is None:
            self.shape = row.shape
            self._start = self._write_header()
        if row.dtype != np.uint8 or row.shape != self.shape:
            raise TypeError(f"expected uint8 rows of shape {self.shape}, got {row.dtype} {row.shape}")
        self._file.write(np.ascontiguousarray(row).data)
        self.count += 1

    def _write_header(self) -> int:
        self._file.seek(0)
        shape = (self.count, *self.shape)
        np.lib.format.write_array_header_1_0(self._file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        end = self._file.tell()
        if self.count and end != self._start:
            raise RuntimeError(f"the header of {self._file.name} grew from {self._start} to {end} bytes")
        return end


class Images(Rows):
    """Rows that are images (C, H, W), all of one size.

    Args:
        path: the file.
        size: scale every image to `size` x `size` pixels (bilinear; the aspect is not kept); None leaves them alone.
    """

    def __init__(self, path: Path, size: int | None) -> None:
        super().__init__(path)
        self.size = size

    def add(self, image: np.ndarray, place: str) -> None:
        """Write one more image.

        Args:
            image: (C, H, W) uint8.
            place: what a message begins with: the file and, where it holds many, the row.
        Raises:
            InputError: the image's size or its channels are not those of the first.
        """
        image = image if self.size is None else _scaled(image, self.size)
        if self.shape is not None and image.shape != self.shape:
            remedy = "; set size to scale them all" if image.shape[0] == self.shape[0] else ""
            raise InputError(f"{place}: image is {_measure(image.shape)}, the first is {_measure(self.shape)}{remedy}")
        self.append(image)


def _scaled(image: np.ndarray, size: int) -> np.ndarray:
    scaled = [Image.fromarray(channel).resize((size, size), Image.Resampling.BILINEAR) for channel in image]
    return np.stack([np.asarray(channel) for channel in scaled])


def _measure(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{height} x {width} with {channels} channel{'s' if channels > 1 else ''}"
