"""Folders that are either whole or absent, whenever the process is killed and whoever else writes them."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def written_whole(path: Path, *, replace: bool) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and leaves nothing behind when it does not.

    Args:
        path: the folder to make; its parents are made too.
        replace: what to do when `path` is there by then: put ours in its place, or (False) keep the other one,
            which is right where the name is a digest and so another process wrote the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:80]}.{uuid4().hex}")
    temporary.mkdir()
    try:
        yield temporary
        while True:
            try:
                temporary.rename(path)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if not replace:
                    return
            # A folder cannot be renamed over one that holds files: move the old one away first.
            old = temporary.with_name(temporary.name + ".old")
            with suppress(FileNotFoundError):  # another process moved it in between
                path.rename(old)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
