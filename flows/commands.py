"""The command that repeats a run, read off its run.json and checked against params.yaml as it is now."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from errors import InputError
from parameters import Experiment, experiment, read

ABSENT = object()


def repeating(root: Path) -> Callable[[Path, dict[str, Any]], str]:
    """A function of a folder of results in the project `root` and its run.json: the command that repeats the run there.

    It is `fcl run` with the `--set` that params.yaml needs today. Where no such command describes the same experiment
    (params.yaml has no such stream any more, a parameter is gone) it is `fcl verify`, which goes by run.json alone.
    """
    known: dict[str, list[str] | None] = {}  # seeds of a method differ in nothing else
    course = bool((read(root)["run"] or {}).get("course"))

    def command(folder: Path, about: dict[str, Any]) -> str:
        inner, saved = folder.relative_to(root), about["experiment"]
        key = json.dumps({**saved, "seed": None}, sort_keys=True)
        if key not in known:
            known[key] = sets_of(saved, root)
        sets = known[key]
        if sets is None:
            return shlex.join(["fcl", "verify", str(inner)])
        if not course and (folder / "course.parquet").exists():
            sets = [*sets, "run.course=true"]  # no part of the experiment, yet of its files
        words = ["fcl", "run", saved["method"], "--stream", saved["stream"], "--seed", str(saved["seed"])]
        words += [word for each in sets for word in ("--set", each)]
        if inner != Path("results", saved["stream"], saved["method"], f"seed-{saved['seed']}"):
            words += ["--out", str(inner)]
        return shlex.join(words)

    return command


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
