"""What the runs of a paper's experiments recorded, read from results/."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Runs:
    """The finished runs on every stream on which a paper's system was run.

    Args:
        paper: the method of its system.
        results: the project's folder `results`; it may be missing.
    """

    paper: str
    results: Path

    @cached_property
    def streams(self) -> list[str]:
        paths = self.results.glob("*/*/seed-*/run.json")
        return sorted({path.parts[-4] for path in paths if _json(path)["method"] == self.paper})

    @cached_property
    def all(self) -> list[dict[str, Any]]:
        """run.json of each, with its `name` STREAM/NAME/seed-N."""
        paths = [path for stream in self.streams for path in (self.results / stream).glob("*/seed-*/run.json")]
        return [{**_json(path), "name": "/".join(path.parts[-4:-1])} for path in sorted(paths)]

    def values(self, key: str) -> list[Any]:
        """What the runs say of `key`, each value once; `UNKNOWN` stands for those that do not say it."""
        return once(run.get(key, UNKNOWN) for run in self.all)

    def of(self, stream: str) -> dict[str, list[dict[str, Any]]]:
        """Runs on a stream by the method's, or variant's, name."""
        found: dict[str, list[dict[str, Any]]] = {}
        for run in self.all:
            where, name, _ = run["name"].split("/")
            if where == stream:
                found.setdefault(name, []).append(run)
        return found


def once(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order in which they come."""
    return list(dict.fromkeys(values))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
