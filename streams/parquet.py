"""Images in Parquet files, in the layouts that Hugging Face data sets have.

An image column is a struct {bytes, path} or plain binary (a file that Pillow reads), or nested lists of integers
(H, W) or (H, W, C). Rows are decoded in small batches into a memory-mapped array, so that memory stays flat. Rows are
counted from 0 in every message.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from errors import InputError, nearest
from streams.parameters import StreamParameters
from streams.rawfile import check_labels, shown

OPTIONS = {"image", "label", "classes"}
ROWS = 128  # read at once: 128 images of 224 x 224 x 3 as lists of int64 are 154 MB
CHANNELS = 4  # more than this in a list's last place is no image


def files(parameters: StreamParameters, root: Path) -> list[Path]:
    """[train] or [train, test].

    Raises:
        InputError: no such file or folder.
    """
    path = root / parameters.source.removeprefix("parquet:").strip()
    train = path / "train.parquet" if path.is_dir() else path
    if not train.is_file():
        raise InputError(f"{shown(train, root)}: no such file (wanted by source {parameters.source!r})")
    test = path / "test.parquet"
    return [train, test] if test.is_file() else [train]


def decode(parameters: StreamParameters, root: Path, folder: Path) -> None:
    """Write inputs.npy (N, C, H, W) uint8, labels.npy (N,) int64 and, for two files, split.npy (N,) bool.

    Raises:
        InputError: names the file, and the row or column that is wrong.
    """
    parts = [_File(path, parameters, root) for path in files(parameters, root)]
    labels = [part.labels(parameters.classes) for part in parts]  # all of them before the slow part
    images = None
    row = 0
    for part in parts:
        for image in part.images():
            if images is None:
                shape = (sum(map(len, labels)), *image.shape)
                images = np.lib.format.open_memmap(folder / "inputs.npy", mode="w+", dtype=np.uint8, shape=shape)
            elif image.shape != images.shape[1:]:
                row -= sum(len(known) for known in labels[: parts.index(part)])
                raise InputError(f"{part.name}, row {row}: image is {_size(image)}, the first is {_size(images[0])}")
            images[row] = image
            row += 1
    images.flush()
    np.save(folder / "labels.npy", np.concatenate(labels))
    if len(parts) == 2:
        np.save(folder / "split.npy", np.repeat([False, True], [len(known) for known in labels]))


class _File:
    """One Parquet file whose columns have been found."""

    def __init__(self, path: Path, parameters: StreamParameters, root: Path) -> None:
        self.name = shown(path, root)
        try:
            self.file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{self.name}: not a whole Parquet file ({_first_line(error)})") from error
        if self.file.metadata.num_rows == 0:
            raise InputError(f"{self.name}: holds no rows")
        self.columns = {field.name: field.type for field in self.file.schema_arrow}
        self.image = self._image_column(parameters.image)
        self.label = self._label_column(parameters.label)

    def labels(self, classes: int | None) -> np.ndarray:
        """(N,) int64, checked to be in range."""
        column = self._read(lambda: self.file.read([self.label]).column(0))
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise InputError(f"{self.name}, row {row}: no label")
        labels = column.to_numpy().astype(np.int64)
        check_labels(labels, classes, self.name)
        return labels

    def images(self):
        """Yields (C, H, W) uint8, row by row."""
        kind = self.columns[self.image]
        decode = _from_lists if _is_list(kind) else _from_file
        row = 0
        batches = self.file.iter_batches(ROWS, columns=[self.image])
        while (batch := self._read(lambda: next(batches, None))) is not None:
            column = batch.column(0)
            cells = column.field("bytes") if pa.types.is_struct(kind) else column
            for i in range(len(cells)):
                try:
                    if not column[i].is_valid or not cells[i].is_valid:
                        raise ValueError("no image bytes" if decode is _from_file else "no image")
                    yield decode(cells.slice(i, 1))
                except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                    raise InputError(f"{self.name}, row {row}: undecodable image ({_first_line(error)})") from error
                row += 1

    def _read(self, read: Callable):
        try:
            return read()
        except (pa.ArrowException, OSError) as error:  # a footer that is whole, over pages that are not
            raise InputError(f"{self.name}: damaged Parquet file ({_first_line(error)})") from error

    def _image_column(self, wanted: str | None) -> str:
        fit = [name for name, kind in self.columns.items() if _is_image(kind)]
        if wanted is None and fit:
            return fit[0]
        if wanted in fit:
            return wanted
        if wanted is None:
            raise InputError(f"{self.name}: no column of images among {', '.join(self.columns)}")
        raise self._unfit("image", wanted, "a column of images", fit)

    def _label_column(self, wanted: str | None) -> str:
        fit = [name for name, kind in self.columns.items() if pa.types.is_integer(kind)]
        name = wanted or "label"
        if name in fit:
            return name
        if wanted is None and name not in self.columns:
            raise InputError(f"{self.name}: no column 'label'; set label to one of {', '.join(fit) or 'no column'}")
        raise self._unfit("label", name, "an integer column", fit)

    def _unfit(self, key: str, wanted: str, expected: str, fit: list[str]) -> InputError:
        if wanted in self.columns:
            choice = f"; {', '.join(fit)} would be" if fit else ""
            return InputError(f"{self.name}: {key} {wanted!r} is {self.columns[wanted]}, not {expected}{choice}")
        return InputError(f"{self.name}: no column {wanted!r} ({key}); {nearest(wanted, fit or self.columns)}")


def _from_file(cell: pa.Array) -> np.ndarray:
    with Image.open(io.BytesIO(cell[0].as_py())) as image:
        if image.mode in ("1", "L", "LA"):
            return np.asarray(image.convert("L"))[None]
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def _from_lists(cell: pa.Array) -> np.ndarray:
    shape = []
    while _is_list(cell.type):
        lengths = pc.unique(pc.list_value_length(cell))
        if len(lengths) != 1 or not lengths[0].as_py():
            raise ValueError("its lists differ in length or are empty")
        shape.append(lengths[0].as_py())
        cell = cell.flatten()
    if cell.null_count:
        raise ValueError("a pixel is missing")
    pixels = cell.to_numpy()
    if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > 255:
        raise ValueError("pixels are not integers in 0..255")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] > CHANNELS):
        raise ValueError(f"shape {tuple(shape)} is neither (H, W) nor (H, W, C)")
    pixels = pixels.astype(np.uint8).reshape(shape)
    return pixels[None] if len(shape) == 2 else pixels.transpose(2, 0, 1)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and pa.types.is_binary(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or _is_list(kind)


def _size(image: np.ndarray) -> str:
    channels, height, width = image.shape
    return f"{height} x {width} with {channels} channel{'s' if channels > 1 else ''}"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
