"""The record of a built stream: where it lies, what it says of itself, and the digest that covers all of it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from errors import InputError, nearest
from streams import manifest as manifests
from streams.manifest import Manifest


def digest(record: dict, manifest: Manifest, tasks: manifests.Names = manifests.TASKS) -> str:
    named = {key: value for key, value in record.items() if key not in ("name", "digest")}
    text = json.dumps({**named, "manifest": manifests.digest(manifest, tasks)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read(name: str, root: Path) -> dict:
    path = folder(name, root) / "stream.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        known = sorted(found.parent.name for found in path.parent.parent.glob("[!.]*/stream.json"))
        hint = f"{nearest(name, known)} or " if known else ""
        raise InputError(f"{shown(name)}: no such stream; {hint}build it with: fcl stream {name}") from None
    except ValueError as error:
        raise InputError(f"{shown(name)}/stream.json: damaged; rebuild it with: fcl stream {name}") from error


def folder(name: str, root: Path) -> Path:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"stream name {name!r} may hold only letters, digits, '.', '_' and '-'")
    return root / "built" / "streams" / name


def shown(name: str) -> str:
    return f"built/streams/{name}"
