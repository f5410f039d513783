"""Small files that are never half there. Imports nothing heavy: the tracking process starts with it."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any, durable: bool = False) -> None:
    """JSON with sorted keys, written to a temporary name and renamed: never half a file.

    Args:
        durable: return when it would survive a power cut; before that it is the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(value, sort_keys=True, indent=1) + "\n").encode(), durable)
    if durable:
        sync(path.parent)


def write_whole(path: Path, data: bytes, durable: bool = False) -> None:
    """Bytes under a temporary name that becomes `path`; of a write that fails nothing is left."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    except FileNotFoundError:
        raise  # there is no folder
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Returns when a file's bytes, or a folder's entries, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` for a folder and all that it holds."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def file_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
