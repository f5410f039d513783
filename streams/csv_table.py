"""Texts in comma-separated files, UTF-8, with quotes doubled inside quotes.

Two layouts. AG News': no header, and in every row the class counted from 1, a title and a description; the text is
title and description joined by a space. Or a header, and the columns that `text` and `label` (and `client`) name.
Rows are counted from 0 in every message, without the header; lines from 1, as an editor shows them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from errors import InputError, nearest
from streams import column
from streams.arrays import Rows
from streams.parameters import StreamParameters
from streams.rawfile import first_line, located, shown
from streams.text import encoded

OPTIONS = {"text", "label", "client", "classes", "length"}
AG_NEWS = ("class", "title", "description")
TEXT, LABEL = "text", "label"  # columns of a file with a header, by default
SHOWN = 40  # characters of a cell that a message repeats


def files(parameters: StreamParameters, root: Path) -> dict[str, Path]:
    """{'train': the file}, or of a folder {'train': train.csv, 'test': test.csv}, the latter where it is there.

    Raises:
        InputError: no such file or folder.
    """
    path = located(parameters, root)
    train, test = (path / "train.csv", path / "test.csv") if path.is_dir() else (path, None)
    if not train.is_file():
        beside = f"; to use {test.name} alone, name the file" if test is not None and test.is_file() else ""
        raise InputError(f"{shown(train, root)}: no such file (wanted by source {parameters.source!r}){beside}")
    return {"train": train, "test": test} if test is not None and test.is_file() else {"train": train}


def decode(parameters: StreamParameters, root: Path, folder: Path) -> None:
    """Write inputs.npy (N, length) uint8, labels.npy (N,) int64, with two files split.npy (N,) bool and with a client
    column clients.npy (N,) int64.

    Raises:
        InputError: names the file, the row and the line that are wrong.
    """
    tables = [_Table(path, shown(path, root), parameters) for path in files(parameters, root).values()]
    with Rows(folder / "inputs.npy") as inputs:
        for table in tables:
            for text in table.texts():
                inputs.append(text)
    parts = [table.column("label") for table in tables]
    np.save(folder / "labels.npy", column.labels(parts[:1], parts[1:], parameters.classes))
    if len(tables) == 2:
        np.save(folder / "split.npy", np.repeat([False, True], [len(table.lines) for table in tables]))
    if parameters.client is not None:
        np.save(folder / "clients.npy", column.clients([table.column("client") for table in tables]))


def all_texts(parameters: StreamParameters, root: Path) -> Iterator[str]:
    """Every text of the source as the stream has it: cut to `length` bytes."""
    for path in files(parameters, root).values():
        for row in _Table(path, shown(path, root), parameters).texts():
            yield row.tobytes().rstrip(b"\0").decode("utf-8", errors="ignore")


class _Table:
    """One file: its texts as they are read, and what its other columns hold once all are.

    Attributes:
        lines: the line where each row begins.
        cells: the label and the client column, as they are written.
    """

    def __init__(self, path: Path, name: str, parameters: StreamParameters) -> None:
        self.path, self.name, self.parameters = path, name, parameters
        self.lines: list[int] = []
        self.cells: dict[str, list[str]] = {"label": [], "client": []}
        self.first = 0

    def column(self, key: str) -> column.Column:
        return column.parsed(self.name, self.cells[key], self.lines, key, self.first if key == "label" else 0)

    def texts(self) -> Iterator[np.ndarray]:
        """Yields (length,) uint8, row by row: see `text.encoded`."""
        with self.path.open("rb") as file:
            records = self._records(file)
            line, head = next(records, (0, None))
            if head is None:
                raise InputError(f"{self.name}: holds no rows")
            place = self._layout(head)
            if self.first:  # AG News: the first row is no header
                yield self._row(line, head, head, place)
            for line, record in records:
                yield self._row(line, record, head, place)
        if not self.lines:
            raise InputError(f"{self.name}: holds no rows, only a header")

    def _layout(self, head: list[str]) -> dict[str, list[int]]:
        """Which of the columns make the text, the label and the client."""
        wanted = {"text": self.parameters.text, "label": self.parameters.label, "client": self.parameters.client}
        if not any(wanted.values()) and not {TEXT, LABEL} <= set(head):
            if len(head) != len(AG_NEWS) or not column.is_integer(head[0].strip()):
                raise InputError(
                    f"{self.name}: begins neither with a header that has {TEXT!r} and {LABEL!r} nor with a row of "
                    f"{', '.join(AG_NEWS)} (got {_short(', '.join(head))}); set text and label to columns of its header"
                )
            self.first = 1
            return {"label": [0], "text": [1, 2]}
        wanted = {"text": TEXT, "label": LABEL} | {key: name for key, name in wanted.items() if name is not None}
        for key, name in wanted.items():
            if name not in head:
                near = nearest(name, [_short(cell) for cell in head])
                raise InputError(f"{self.name}: no column {name!r} ({key}) in the header; {near}")
            if head.count(name) > 1:
                raise InputError(f"{self.name}: {head.count(name)} columns {name!r} ({key}) in the header")
        return {key: [head.index(name)] for key, name in wanted.items()}

    def _row(self, line: int, record: list[str], head: list[str], place: dict[str, list[int]]) -> np.ndarray:
        at = f"{self.name}, row {len(self.lines)} (line {line})"
        if len(record) != len(head):
            raise InputError(f"{at}: {len(record)} columns, the first line has {len(head)}")
        self.lines.append(line)
        for key, (where, *_) in place.items():
            if key != "text":
                self.cells[key].append(record[where].strip())
        try:
            return encoded(" ".join(record[where] for where in place["text"]), self.parameters.length)
        except ValueError as error:
            raise InputError(f"{at}: {error}") from error

    def _records(self, file: BinaryIO) -> Iterator[tuple[int, list[str]]]:
        """Yields (line, cells) of every row, the header included, and leaves out empty lines."""
        reader = csv.reader(self._decoded(file), strict=True)
        while True:
            line = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                where = f"{self.name}, row {len(self.lines)} (line {line})"
                raise InputError(f"{where}: not comma-separated values ({first_line(error)})") from error
            if record:
                yield line, record

    def _decoded(self, file: BinaryIO) -> Iterator[str]:
        # Line by line: a text file is decoded in blocks, and a wrong byte would be reported some rows too early.
        for number, raw in enumerate(file, 1):
            try:
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{self.name}, row {len(self.lines)} (line {number}): not UTF-8 ({error})") from error


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
