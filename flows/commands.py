"""The command that makes a run again, and how its parameters differ from those of params.yaml now."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from errors import InputError
from parameters import Experiment, experiment

from .conduct import flat


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


def again(run: Mapping[str, Any], differences: list[dict[str, Any]], folder: Path | None, root: Path) -> str | None:
    """`fcl run ...` that gives this very experiment with params.yaml as it is now; None where no `--set` does."""
    method, stream, seed = run["method"], run["stream"], run["seed"]
    sets = [f"{setting(each['key'], run)}={_yaml(each['then'])}" for each in differences]
    try:
        if experiment(method, stream, seed, sets, root).digest != run["parameter_digest"]:
            return None
    except InputError:
        return None
    words = ["fcl", "run", method, "--stream", stream, "--seed", str(seed)]
    for each in sets:
        words += ["--set", each]
    usual = root / "results" / stream / method / f"seed-{seed}"
    if folder and folder != usual:
        words += ["--out", str(folder.relative_to(root) if folder.is_relative_to(root) else folder)]
    return shlex.join(words)


def setting(key: str, run: Mapping[str, Any]) -> str:
    """A key of run.json's `experiment` as `--set` knows it."""
    first, dot, rest = key.partition(".")
    names = {"method_parameters": f"methods.{run['method']}", "stream_parameters": f"streams.{run['stream']}"}
    return names.get(first, first) + dot + rest


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
