"""Small files that are never half there. Imports nothing heavy: the tracking process starts with it."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .patience import FULL, StoreFailed, no_space

SYNCING = 8  # at the same time: the file system then commits them together (measured: 4 to 7 times as fast)


def write_json(path: Path, value: Any, after: Sequence[Path] | None = None) -> None:
    """JSON with sorted keys, written to a temporary name and renamed: never half a file.

    Args:
        after: files and folders that the new file refers to. It takes its place when they and it would survive a power
            cut; before that the old one is there. None: there is no hurry, the system writes when it likes.
    Raises:
        StoreFailed: the disk did not take it. Not OSError, and so not tried again: after a failed fsync the next one
            may succeed without the bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(value, sort_keys=True, indent=1) + "\n").encode(), after)


def write_whole(path: Path, data: bytes, after: Sequence[Path] | None = None) -> None:
    """Bytes under a temporary name that becomes `path`, as `write_json`; of a write that fails nothing is left."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        if after is not None:
            sync([*after, temporary])
        os.replace(temporary, path)
    except FileNotFoundError:
        raise  # there is no folder
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if after is not None:
        sync([path.parent])


def sync(paths: Sequence[Path]) -> None:
    """Returns when the bytes of files and the entries of folders would survive a power cut.

    Raises:
        StoreFailed: see `write_json`.
    """
    if len(paths) == 1:
        _sync(paths[0])
        return
    with ThreadPoolExecutor(min(len(paths), SYNCING)) as pool:
        list(pool.map(_sync, paths))


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        kept = f"{path} could not be kept on the disk ({error.strerror}); go on with --resume"
        raise StoreFailed(no_space(str(path)) if error.errno in FULL else kept) from error


def sync_tree(folder: Path) -> None:
    """`sync` for a folder and all that it holds."""
    sync([*folder.rglob("*"), folder])


def file_digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
