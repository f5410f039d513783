"""Streams and foundation models in built/: which of them a digest means, and whether their files still have it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from parameters import read, stream_parameters
from streams import manifest as manifests
from streams import records
from streams.parameters import StreamParameters
from tasks.foundation import read as read_foundation

from .origins import Origin


def stream_of(origin: Origin) -> str | None:
    """The digest of the stream that a stream, its picture or a foundation model is made from."""
    record = origin.record or {}
    if "plan" in record or origin.what == "picture of a task stream":
        return record["digest"]
    return record.get("stream")  # the digest, in foundation.json


def foundation_of(origin: Origin) -> str | None:
    """The digest of a foundation model."""
    record = origin.record or {}
    return record["digest"] if "backbone" in record else None


def folder_of(kind: str, digest: str | None, root: Path) -> dict[str, Any] | None:
    """`digest`, and the `folder` in built/ that has it, None where none has."""
    if digest is None:
        return None
    for path in sorted((root / "built" / kind).glob("[!.]*/*.json")):
        try:
            found = json.loads(path.read_text())
        except ValueError:
            continue
        if isinstance(found, dict) and found.get("digest") == digest:
            return {"digest": digest, "folder": path.parent.relative_to(root).as_posix()}
    return {"digest": digest, "folder": None}


def stream_command(record: Mapping[str, Any], root: Path) -> str | None:
    """`fcl stream NAME`, where params.yaml has the stream with these very parameters; else a run builds it."""
    params, name = read(root), record["name"]
    same = name in params["streams"] and stream_parameters(params, name).model_dump(mode="json") == record["parameters"]
    return f"fcl stream {name}" if same else None


def damage(origin: Origin) -> Iterator[str]:
    """Whether the files beside a stream.json or foundation.json are no longer those that it names by digest."""
    record, place = origin.record, origin.place
    if not record or not place:
        return
    if (place / "foundation.json").is_file():
        if read_foundation(place) is None:
            yield f"{place.name}/: files are missing, or not those that foundation.json names by digest"
        return
    about = StreamParameters.model_validate(record["parameters"])
    tasks = about.multitask.tasks if about.multitask else manifests.TASKS
    try:
        manifest = manifests.read(place / "manifest.parquet", tasks)
        intact = records.digest(dict(record), manifest, tasks) == record["digest"]
    except (pa.ArrowException, OSError, KeyError, ValueError, IndexError):  # as `streams.stream.open_stream`
        intact = False
    if not intact:
        yield f"{place.name}/manifest.parquet is missing, or not the content that stream.json names by digest"
