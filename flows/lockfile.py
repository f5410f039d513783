"""What dvc.lock says of a file, and whether the file on disk still is what it says.

Read and hashed as DVC 3 does (MD5; a folder is the MD5 of the JSON list of its files, with `.dir` behind it), without
opening the DVC project: that takes locks and writes a cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from errors import InputError
from parameters import LOADER


def recorded(path: Path, root: Path) -> list[dict[str, Any]]:
    """The stages' outputs that `path` is, holds or lies in: `lock, stage, path, recorded, now, same`.

    `now` is the hash of what is on disk, None where nothing is; paths are relative to `root`.

    Args:
        root: the project's folder. Its dvc.lock and those of the folders in it are read.
    Raises:
        InputError: a dvc.lock or dvc.yaml cannot be read.
    """
    found = []
    for lock in sorted([*root.glob("dvc.lock"), *root.glob("*/dvc.lock")]):
        for stage, output, known in _outputs(lock):
            if output == path or output in path.parents or path in output.parents:
                now = digest(output)
                about = {"lock": shown(lock, root), "stage": stage, "path": shown(output, root), "recorded": known}
                found.append({**about, "now": now, "same": now == known})
    return found


def digest(path: Path) -> str | None:
    """The hash that DVC gives a file or folder; None where there is none."""
    if path.is_dir():
        files = (each for each in path.rglob("*") if each.is_file())
        entries = [{"md5": _md5(each), "relpath": each.relative_to(path).as_posix()} for each in files]
        entries.sort(key=lambda entry: entry["relpath"])
        return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"
    return _md5(path) if path.exists() else None


def _outputs(lock: Path) -> Iterator[tuple[str, Path, str]]:
    """(stage, file or folder, its hash); paths in dvc.lock are relative to the stage's `wdir` in dvc.yaml."""
    stages, definitions = ((_read(lock.with_name(name)).get("stages") or {}) for name in ("dvc.lock", "dvc.yaml"))
    for stage, about in stages.items():
        definition = definitions.get(stage.partition("@")[0]) or {}
        folder = lock.parent / definition.get("wdir", ".")
        for output in about.get("outs") or ():
            if "md5" in output:
                yield stage, (folder / output["path"]).resolve(), output["md5"]


def _read(path: Path) -> dict[str, Any]:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), LOADER) or {}
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML; expected what DVC writes") from error


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def shown(path: Path, root: Path) -> str:
    """Relative to the project where it lies in it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
