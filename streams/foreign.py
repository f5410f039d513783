"""Samples of another source in the form of a stream's own: public data that have nothing to do with its classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pyarrow.types as types

from errors import InputError
from streams import parquet
from streams.parameters import StreamParameters
from streams.sources import KINDS, load
from streams.stream import Stream
from validation import checked


def foreign(source: str, stream: Stream, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """All training samples of `source`: inputs (n, *stream.shape) uint8 and the source's own labels (n,) int64.

    Images are scaled to the stream's size, grey ones repeated and coloured ones averaged to the stream's channels;
    texts are cut to the stream's length.

    Raises:
        InputError: the stream's own source, no such source, texts for images or images for texts, or the stream's
            images are not square, or are parts of records.
    """
    if stream.layout is not None:
        raise InputError(f"source {source}: the samples of stream {stream.name} are records of several tasks")
    if _same(source, stream.parameters.source, root):
        raise InputError(
            f"source {source} is where the stream's own samples come from: they are the clients'; 'public' is the part "
            "that no client holds"
        )
    about: dict[str, object] = {"source": source, "clients": 1, "experiences": 1}
    text = stream.modality == "text"
    if text:
        about["length"] = stream.shape[0]
    else:
        if stream.shape[1] != stream.shape[2]:
            raise InputError(f"source {source}: images can only be scaled to squares (the stream's are {stream.shape})")
        about["size"] = stream.shape[1]
    parameters = checked(StreamParameters, about, "surrogate")
    if ("length" if text else "size") not in KINDS[source.partition(":")[0]].OPTIONS:
        raise InputError(f"source {source}: the stream has {stream.modality}s, and these are none")
    if source.startswith("parquet:"):
        parameters = parameters.model_copy(update=_columns(parameters, root, text))
    found = load(parameters, root)
    inputs = found.inputs if found.is_test is None else found.inputs[~found.is_test]
    labels = found.labels if found.is_test is None else found.labels[~found.is_test]
    if inputs.ndim != len(stream.shape) + 1:
        raise InputError(f"source {source}: the stream has {stream.modality}s, and these are none")
    if not text:
        inputs = _channels(np.asarray(inputs), stream.shape[0])
    return np.array(inputs), labels  # a copy: the source may be a file that cannot be written to


def _same(source: str, own: str, root: Path) -> bool:
    """Whether two sources share a file, or are the same set."""
    (kind, _, place), (own_kind, _, own_place) = source.partition(":"), own.partition(":")
    if not {kind, own_kind} & {"digits", "torchvision"}:
        one, other = (root / place).resolve(), (root / own_place).resolve()
        return one == other or one in other.parents or other in one.parents
    return kind == own_kind and place.lower() == own_place.lower()


def _columns(parameters: StreamParameters, root: Path, text: bool) -> dict[str, str]:
    """The columns of a Parquet source: any labels will do, and for texts the first column of texts."""
    schema = pq.read_schema(next(iter(parquet.files(parameters, root).values())))
    integers = [field.name for field in schema if types.is_integer(field.type)]
    texts = [field.name for field in schema if types.is_string(field.type) or types.is_large_string(field.type)]
    found = {"label": "label" if "label" in schema.names or not integers else integers[0]}
    return found | ({"text": texts[0]} if text and texts else {})


def _channels(images: np.ndarray, wanted: int) -> np.ndarray:
    """(n, C, H, W) -> (n, wanted, H, W): repeated if grey, else the mean of the channels, repeated."""
    if images.shape[1] == wanted:
        return images
    grey = images if images.shape[1] == 1 else np.rint(images.mean(axis=1, keepdims=True)).astype(np.uint8)
    return np.repeat(grey, wanted, axis=1)
