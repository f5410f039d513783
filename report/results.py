"""What the report tells of, as it lies under results/: streams, their methods, and the runs of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from errors import InputError
from metrics.comparison import collect, table
from metrics.summary import over_experiences

FILES = ("accuracy_matrix.parquet", "rounds.parquet", "run.json")


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        method: the name of its folder: a registered method or a variant of one.
        folder: of its results.
        about: run.json.
        command: what repeats it.
    """

    method: str
    seed: int
    folder: Path
    about: dict[str, Any]
    command: str

    @cached_property
    def matrix(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / FILES[0])

    @property
    def matrix_of_main(self) -> pd.DataFrame:
        """The rows of the method's answer."""
        return self.matrix[self.matrix["model"] == self.main]

    @cached_property
    def rounds(self) -> pd.DataFrame:
        return pd.read_parquet(self.folder / FILES[1])

    @property
    def main(self) -> str:
        """The kind of model that is the method's answer."""
        return self.about["main_model"]

    @cached_property
    def course(self) -> pd.DataFrame:
        """The main model over the experiences."""
        return over_experiences(self.matrix, self.rounds, self.main)


@dataclass(frozen=True)
class Stream:
    """All runs on one stream.

    Attributes:
        frame: `metrics.comparison.collect`, one row a run.
        runs: by method, each in the order of its seeds; methods by name.
    """

    name: str
    frame: pd.DataFrame
    runs: dict[str, list[Run]]

    @cached_property
    def table(self) -> pd.DataFrame:
        """`metrics.comparison.table` without what no method has, indexed by method, the finally best first."""
        return table(self.frame).droplevel("stream").dropna(axis="columns", how="all")

    @property
    def every(self) -> list[Run]:
        return [run for runs in self.runs.values() for run in runs]

    def sends(self, method: str) -> bool:
        """Whether clients and server exchange anything: `local` and `joint` are bounds, no federations."""
        row = self.table.loc[method]
        return bool(row.get("bytes_up", 0) + row.get("bytes_down", 0) > 0)


def read(
    results: Path, stream: str | None = None, command: Callable[[Path, dict[str, Any]], str] | None = None
) -> list[Stream]:
    """All streams with results, by name; `stream` None takes them all.

    Args:
        results: the folder `results` of a project.
        command: what repeats a run, from its folder and run.json; default `fcl verify FOLDER`.
    Raises:
        InputError: there are no results, or those of a run are not whole or not readable.
    """
    every = collect(results, stream)
    found = []
    for name, frame in every.groupby("stream"):
        runs: dict[str, list[Run]] = {}
        for method, seed in zip(frame["method"], frame["seed"], strict=True):
            folder = results / name / method / f"seed-{seed}"
            about = _about(folder)
            said = command(folder, about) if command else f"fcl verify results/{name}/{method}/seed-{seed}"
            runs.setdefault(method, []).append(Run(method, seed, folder, about, said))
        found.append(Stream(name, frame, runs))
    return found


def _about(folder: Path) -> dict[str, Any]:
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing)}: not whole results; run the experiment again")
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / 'run.json'} is not valid JSON ({error}); run the experiment again") from error
