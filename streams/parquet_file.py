"""One Parquet file of a source: its columns found, its rows decoded in small batches."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from errors import InputError, nearest
from streams.column import Column
from streams.pixels import UNDECODABLE, decoded
from streams.rawfile import first_line
from streams.text import encoded

ROWS = 128  # read at once: 128 images of 224 x 224 x 3 as lists of int64 are 154 MB
BUFFER = 1 << 20  # bytes read at once; pyarrow's own way would keep all that it has read of a file
CHANNELS = 4  # more than this in a list's last place is no image


class Columns(Protocol):
    """Names of columns: those that the user asks for, or those that another file of the source has."""

    image: str | None
    text: str | None
    label: str | None
    client: str | None


class ParquetPart:
    """One Parquet file whose columns have been found.

    Args:
        path: the file.
        name: what messages call it.
        wanted: the columns to look for. Without `text` it is a file of images, and without `image` the first column
            that can be one is taken; `label` is 'label' by default.
    Raises:
        InputError: not a Parquet file, no rows, or a column is missing or of another kind.
    """

    def __init__(self, path: Path, name: str, wanted: Columns) -> None:
        self.name = name
        try:
            self.file = pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{name}: not a whole Parquet file ({first_line(error)})") from error
        if self.file.metadata.num_rows == 0:
            raise InputError(f"{name}: holds no rows")
        self.columns = {field.name: _plain(field.type) for field in self.file.schema_arrow}
        self.text = wanted.text and self._find("text", wanted.text, _is_text, "a column of texts")
        self.image = None if self.text else self._image_column(wanted.image)
        self.label = self._label_column(wanted.label)
        self.client = wanted.client and self._find("client", wanted.client, _is_key, "a column of integers or texts")

    @property
    def keys(self) -> list[str]:
        """The columns of integers or names, which labels may be."""
        return self._fit(_is_key)

    def column(self, name: str, key: str) -> Column:
        """All values of the integer or text column `name`; `key` is the parameter that names it."""
        values = self._read(lambda: self.file.read([name]).column(0))
        if values.null_count:
            row = int(np.flatnonzero(values.is_null().to_numpy())[0])
            raise InputError(f"{self.name}, row {row}: no {key}")
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if not _is_text(values.type):
            return Column(self.name, values.to_numpy().astype(np.int64))
        texts = np.array(values.to_pylist(), object)
        empty = np.flatnonzero(texts == "")
        if len(empty):
            raise InputError(f"{self.name}, row {empty[0]}: no {key}")
        return Column(self.name, texts)

    def images(self) -> Iterator[np.ndarray]:
        """Yields (C, H, W) uint8, row by row."""
        kind = self.columns[self.image]
        decode = _from_lists if _is_list(kind) else _from_file

        def image(column: pa.Array, i: int) -> np.ndarray:
            cells = column.field("bytes") if pa.types.is_struct(kind) else column
            if not column[i].is_valid or not cells[i].is_valid:
                raise ValueError("no image bytes" if decode is _from_file else "no image")
            return decode(cells.slice(i, 1))

        return self._rows(self.image, image, "undecodable image")

    def texts(self, length: int | None) -> Iterator[np.ndarray]:
        """Yields (length,) uint8, row by row: see `text.encoded`."""

        def text(column: pa.Array, i: int) -> np.ndarray:
            if not column[i].is_valid:
                raise ValueError("no text")
            return encoded(column[i].as_py(), length)

        return self._rows(self.text, text, "unusable text")

    def _rows(self, name: str, decode: Callable[[pa.Array, int], np.ndarray], wrong: str) -> Iterator[np.ndarray]:
        row = 0
        batches = self.file.iter_batches(ROWS, columns=[name])
        while (batch := self._read(lambda: next(batches, None))) is not None:
            for i in range(len(batch)):
                try:
                    yield decode(batch.column(0), i)
                except UNDECODABLE as error:
                    raise InputError(f"{self.name}, row {row}: {wrong} ({first_line(error)})") from error
                row += 1

    def _read(self, read: Callable):
        try:
            return read()
        except (pa.ArrowException, OSError) as error:  # a footer that is whole, over pages that are not
            raise InputError(f"{self.name}: damaged Parquet file ({first_line(error)})") from error

    def _image_column(self, wanted: str | None) -> str:
        if wanted is not None:
            return self._find("image", wanted, _is_image, "a column of images")
        fit = self._fit(_is_image)
        if not fit:
            texts = self._fit(_is_text)
            hint = f"; set text to use {' or '.join(texts)}" if texts else ""
            raise InputError(f"{self.name}: no column of images among {', '.join(self.columns)}{hint}")
        return fit[0]

    def _label_column(self, wanted: str | None) -> str:
        fit = self._fit(pa.types.is_integer)
        if wanted is None and "label" not in self.columns:
            raise InputError(f"{self.name}: no column 'label'; set label to one of {', '.join(fit) or 'no column'}")
        return self._find("label", wanted or "label", _is_key, "a column of integers or names", fit)

    def _find(self, key: str, wanted: str, fits: Callable, expected: str, likely: list[str] | None = None) -> str:
        """`wanted`, if there is such a column and it fits; the error proposes the `likely` ones."""
        likely = self._fit(fits) if likely is None else likely
        if wanted not in self.columns:
            raise InputError(f"{self.name}: no column {wanted!r} ({key}); {nearest(wanted, likely or self.columns)}")
        if not fits(self.columns[wanted]):
            choice = f"; {', '.join(likely)} would be" if likely else ""
            raise InputError(f"{self.name}: {key} {wanted!r} is {self.columns[wanted]}, not {expected}{choice}")
        return wanted

    def _fit(self, fits: Callable) -> list[str]:
        return [name for name, kind in self.columns.items() if fits(kind)]


def _from_file(cell: pa.Array) -> np.ndarray:
    return decoded(io.BytesIO(cell[0].as_py()))


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


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_key(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or _is_text(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and pa.types.is_binary(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or _is_list(kind)
