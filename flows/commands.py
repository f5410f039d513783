"""The command that repeats a run, checked against params.yaml as it is now, and how parameters differ from that."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from errors import InputError
from parameters import Experiment, experiment, read

from .description import flat

ABSENT = object()


def repeating(root: Path) -> Callable[[Path, dict[str, Any]], str]:
    """A function of a folder of results in the project `root` and its run.json: the command that repeats the run there.

    Where no `fcl run` describes the same experiment any more it is `fcl verify`, which goes by run.json alone.
    """
    known: dict[str, list[str] | None] = {}  # seeds of a method differ in nothing else

    def command(folder: Path, about: dict[str, Any]) -> str:
        key = json.dumps({**about["experiment"], "seed": None}, sort_keys=True)
        if key not in known:
            known[key] = sets_of(about["experiment"], root)
        if known[key] is None:
            return shlex.join(["fcl", "verify", str(folder.relative_to(root))])
        return worded(about["experiment"], known[key], folder, root)

    return command


def again(run: Mapping[str, Any], folder: Path | None, root: Path) -> str | None:
    """`fcl run ...` that gives a run.json's very experiment with params.yaml as it is now; None where none does."""
    sets = sets_of(run["experiment"], root)
    return None if sets is None else worded(run["experiment"], sets, folder, root)


def worded(saved: Mapping[str, Any], sets: list[str], folder: Path | None, root: Path) -> str:
    """`fcl run` of the experiment with these `--set`, into the folder where its results lie."""
    method, stream, seed = saved["method"], saved["stream"], saved["seed"]
    course = folder and (folder / "course.parquet").exists() and not (read(root)["run"] or {}).get("course")
    words = ["fcl", "run", method, "--stream", stream, "--seed", str(seed)]
    for each in [*sets, *["run.course=true"] * bool(course)]:  # the latter no part of the experiment, yet of its files
        words += ["--set", each]
    if folder and folder != root / "results" / stream / method / f"seed-{seed}":
        words += ["--out", str(folder.relative_to(root) if folder.is_relative_to(root) else folder)]
    return shlex.join(words)


def since(run: Mapping[str, Any], root: Path) -> tuple[Experiment | None, list[dict[str, Any]], str]:
    """The same experiment by params.yaml as it is now, the parameters in which it differs, and why there is none.

    Each difference is `{"key", "then", "now"}`; a key that one side does not have is None there.
    """
    try:
        now = experiment(run["method"], run["stream"], run["seed"], [], root)
    except InputError as error:
        return None, [], str(error)
    one, other = flat(dict(run["experiment"])), flat(now.identity())
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return now, [{"key": key, "then": one.get(key), "now": other.get(key)} for key in keys], ""


def sets_of(saved: dict[str, Any], root: Path) -> list[str] | None:
    """The `--set` with which params.yaml describes the experiment of a run.json; None: there are none that do."""
    try:
        base = _described(saved, (), root).identity()
        sets = list(_differences(base, saved))
        same = _described(saved, sets, root).identity() == saved
    except InputError:
        return None
    return sets if same else None


def _described(saved: dict[str, Any], sets: tuple[str, ...] | list[str], root: Path) -> Experiment:
    return experiment(saved["method"], saved["stream"], saved["seed"], sets, root)


def _differences(base: dict[str, Any], saved: dict[str, Any]) -> Iterator[str]:
    """What to set, as `--set` takes it, so that an experiment like `base` is like `saved`."""
    if base["models"] != saved["models"]:
        if len(base["models"]) == len(saved["models"]) == 1:
            yield from _assignments("model", base["models"][0], saved["models"][0])
        else:
            yield f"models={json.dumps(saved['models'])}"
    sections = {
        "method_parameters": f"methods.{saved['method']}",
        "stream_parameters": f"streams.{saved['stream']}",
        **{name: name for name in ("train", "foundation", "devices", "faults")},
    }
    for name, key in sections.items():
        yield from _assignments(key, base.get(name, {}), saved.get(name, {}))


def _assignments(key: str, base: Any, saved: Any) -> Iterator[str]:
    if isinstance(base, dict) and isinstance(saved, dict):
        for name, value in saved.items():
            yield from _assignments(f"{key}.{name}", base.get(name, ABSENT), value)
    elif isinstance(saved, dict):
        for name, value in saved.items():
            yield from _assignments(f"{key}.{name}", ABSENT, value)
    elif base != saved:
        yield f"{key}={json.dumps(saved)}"  # which YAML reads, too
