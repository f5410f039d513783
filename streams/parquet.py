"""Images or texts in Parquet files, in the layouts that Hugging Face data sets have.

An image column is a struct {bytes, path} or plain binary (a file that Pillow reads), or nested lists of integers
(H, W) or (H, W, C). Rows are decoded in small batches and written one by one, so that memory stays flat. Rows are
counted from 0 in every message.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from errors import InputError
from streams import column
from streams.arrays import Images, Rows
from streams.parameters import StreamParameters
from streams.parquet_file import ParquetPart
from streams.rawfile import located, shown

OPTIONS = {"image", "text", "label", "client", "classes", "length", "size"}
SHARD = re.compile(r"(?P<part>train|test)-(?P<number>\d+)-of-(?P<count>\d+)(-\w+)?\.parquet")  # Hugging Face's naming


def files(parameters: StreamParameters, root: Path) -> dict[str, Path]:
    """The files by their part: 'train', 'test', or 'train/0', 'train/1', ... where a part has several.

    PATH is one file, or a folder with train.parquet (and test.parquet), or with train-00000-of-00002.parquet and so on
    (and the same for test), or with Parquet files of other names, which are then all for training. Where the names say
    what is for training, other files such as validation-00000-of-00001.parquet are left alone.

    Raises:
        InputError: no such file or folder, a shard is missing, or the names say two things.
    """
    path = located(parameters, root)
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"{shown(path, root)}: no such file (wanted by source {parameters.source!r})")
        return {"train": path}
    parts = {part: _shards(path, part, root) for part in ("train", "test")}
    if not parts["train"]:
        others = sorted(path.glob("[!.]*.parquet"))
        if parts["test"] or not others:
            wanted = f"no such file (wanted by source {parameters.source!r})"
            raise InputError(f"{shown(path / 'train.parquet', root)}: {wanted}")
        odd = [found for found in others if found.name.lower().startswith(("test", "val"))]
        if odd:
            raise InputError(
                f"{shown(odd[0], root)}: by its name not for training; call the files for training train.parquet or "
                "train-00000-of-00001.parquet, or name one file"
            )
        parts["train"] = others
    return {
        name if len(shards) == 1 else f"{name}/{number}": shard
        for name, shards in parts.items()
        for number, shard in enumerate(shards)
    }


def _shards(folder: Path, part: str, root: Path) -> list[Path]:
    """The files of one part in their order; none where the folder has none."""
    whole = folder / f"{part}.parquet"
    shards = {}
    for found in sorted(folder.glob(f"{part}-*.parquet")):
        name = SHARD.fullmatch(found.name)
        if name:
            shards.setdefault(int(name["count"]), {})[int(name["number"])] = found
    if len(shards) + whole.is_file() > 1:
        raise InputError(f"{shown(folder, root)}: holds more than one set of {part} files; keep one, or name a file")
    if whole.is_file() or not shards:
        return [whole] if whole.is_file() else []
    ((count, numbered),) = shards.items()
    missing = sorted(set(range(count)) - set(numbered))
    if missing:
        raise InputError(f"{shown(folder, root)}: {part} shard {missing[0]:05d} of {count:05d} is missing")
    return [numbered[number] for number in range(count)]


def decode(parameters: StreamParameters, root: Path, folder: Path) -> None:
    """Write inputs.npy (N, C, H, W) or (N, length) uint8, labels.npy (N,) int64 and, where there are test files,
    split.npy (N,) bool; with a client column clients.npy (N,) int64.

    Raises:
        InputError: names the file, and the row or column that is wrong.
    """
    if parameters.text is not None and parameters.image is not None:
        raise InputError(f"image and text are both set ({parameters.image!r}, {parameters.text!r}); leave one out")
    given, kind = ("length", "images") if parameters.text is None else ("size", "texts")
    if getattr(parameters, given) is not None:
        raise InputError(f"{given} is set, but {parameters.source} is a source of {kind}")
    parts = {}
    for name, path in files(parameters, root).items():
        parts[name] = ParquetPart(path, shown(path, root), next(iter(parts.values()), parameters))
    is_test = {name: name.startswith("test") for name in parts}
    labels = {name: part.column(part.label, "label") for name, part in parts.items()}  # before the slow part
    train = [labels[name] for name in parts if not is_test[name]]
    test = [labels[name] for name in parts if is_test[name]]
    np.save(folder / "labels.npy", column.labels(train, test, parameters.classes))
    if test:
        np.save(folder / "split.npy", np.repeat(list(is_test.values()), [len(labels[name].values) for name in parts]))
    if parameters.client is not None:
        owners = [part.column(part.client, "client") for part in parts.values()]
        np.save(folder / "clients.npy", column.clients(owners))
    if parameters.text is not None:
        with Rows(folder / "inputs.npy") as inputs:
            for part in parts.values():
                for row in part.texts(parameters.length):
                    inputs.append(row)
        return
    with Images(folder / "inputs.npy", parameters.size) as inputs:
        for part in parts.values():
            for row, image in enumerate(part.images()):
                inputs.add(image, f"{part.name}, row {row}")
