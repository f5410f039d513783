"""What a file or folder is and which run it comes from: by where it lies, by what is written in it, or by its bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from filecmp import cmp
from pathlib import Path
from typing import Any

import yaml

from errors import InputError
from metrics import provenance

RUN = {"digest", "parameter_digest", "experiment"}  # of run.json
KINDS = {".png": "figure", ".svg": "figure", ".html": "page", ".safetensors": "model", ".parquet": "table"}


@dataclass(frozen=True)
class Origin:
    """What is known of a file.

    Attributes:
        what: in words.
        how: how that was found out, in words.
        run: run.json, or as much of it as is written in the file; None: it is not of one run.
        folder: the run's results, where they are in the project.
        own: what is written in the file itself.
        compared: the runs of a comparison, `provenance.ORIGIN` and `name` of each; None: it is none, or nobody knows.
        record: stream.json or foundation.json.
        place: the folder that `record` was found in.
        mlflow_model: the id of an MLflow model.
    """

    what: str
    how: str
    run: Mapping[str, Any] | None = None
    folder: Path | None = None
    own: Mapping[str, Any] | None = None
    compared: list[dict[str, Any]] | None = None
    record: Mapping[str, Any] | None = None
    place: Path | None = None
    mlflow_model: str | None = None


def find(path: Path, root: Path) -> Origin:
    """Where `path`, an absolute one, comes from.

    Raises:
        InputError: there is no such file, a record beside it is damaged, or nothing says where it comes from.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected a result, figure, table, model or built stream")
    found = _by_place(path) or _by_content(path, root) or _by_bytes(path, root) or _of_comparisons(path, root)
    if found is None:
        raise InputError(
            f"{path}: nothing says where it comes from; expected something in a run's folder, comparison/, "
            "built/streams/ or built/foundations/, a figure or model that fcl wrote, or an MLflow model of one"
        )
    return found


def _by_place(path: Path) -> Origin | None:
    for folder in (path, *path.parents):
        if not folder.is_dir():
            continue
        where = f"{folder.name}/"
        if (folder / "run.json").is_file() and (run := _json(folder / "run.json")).keys() >= RUN:
            return Origin(_in_run(path, folder), f"by run.json in {where}", run, folder, provenance.read(path))
        if (folder / "stream.json").is_file():
            record = _json(folder / "stream.json")
            return Origin("task stream", f"by stream.json in {where}", record=record, place=folder)
        if (folder / "foundation.json").is_file():
            record = _json(folder / "foundation.json")
            return Origin("foundation model", f"by foundation.json in {where}", record=record, place=folder)
        if (folder / "MLmodel").is_file():
            return _mlflow(folder)
        if (folder / "runs.json").is_file():
            compared = _json(folder / "runs.json").get("runs")
            what, own = f"{_kind(path)} of a comparison", provenance.read(path)
            return Origin(what, f"by runs.json in {where}", own=own, compared=compared)
    return None


def _in_run(path: Path, folder: Path) -> str:
    if path == folder or path.name == "run.json":
        return "results of a run"
    if "backbone" in path.relative_to(folder).parts:
        return "foundation model that a run used"
    return f"{_kind(path)} of a run"


def _kind(path: Path) -> str:
    return "files" if path.is_dir() else KINDS.get(path.suffix.lower(), "file")


def _mlflow(folder: Path) -> Origin:
    """A folder that MLflow keeps a model in. The model's own files lie below `data`."""
    about = yaml.safe_load((folder / "MLmodel").read_text())
    records = sorted((folder / "data").rglob("foundation.json"))
    headers = [header for each in sorted((folder / "data").rglob("*.safetensors")) if (header := model_header(each))]
    found = Origin("MLflow model", "by MLmodel", mlflow_model=about.get("model_id"))
    if about.get("run_id"):
        return replace(found, run={"mlflow_run": about["run_id"], **(headers[0].get("run", {}) if headers else {})})
    if records:
        return replace(found, what="MLflow model of a foundation model", record=_json(records[0]))
    return found


def _by_content(path: Path, root: Path) -> Origin | None:
    """A figure or page by its metadata, a model by its header."""
    own, how = provenance.read(path), "by its metadata"
    if path.suffix == ".safetensors" and (header := model_header(path)):
        own, how = header.get("run"), "by its header"
    if not own:
        return None
    if "runs" in own:
        return Origin(f"{_kind(path)} of a comparison", how, own=own, compared=own["runs"])
    if "digest" not in own:
        return Origin("picture of a task stream", how, own=own, record={"digest": own["stream_digest"], **own})
    return Origin(f"{_kind(path)} of a run", how, own, own=own)


def _by_bytes(path: Path, root: Path) -> Origin | None:
    """A copy of a file of the project's results."""
    if path.is_file():
        size = path.stat().st_size
        for each in _files(root):
            if each.stat().st_size == size and each != path and cmp(path, each, shallow=False):
                found = _by_place(each)
                if found:
                    return replace(found, how=f"by its bytes: a copy of {each.relative_to(root)}")
    return None


def _files(root: Path) -> Iterator[Path]:
    for folder in ("results", "comparison"):
        yield from sorted(each for each in (root / folder).rglob("*") if each.is_file())


def _of_comparisons(path: Path, root: Path) -> Origin | None:
    """A report over several streams: all comparisons' runs."""
    if not path.is_relative_to(root / "comparison"):
        return None
    lists = [_json(each).get("runs", []) for each in sorted((root / "comparison").glob("*/runs.json"))]
    compared = [run for runs in lists for run in runs] or None
    return Origin(f"{_kind(path)} of a comparison", "by its place in comparison/", compared=compared)


def run_of(known: Mapping[str, Any], root: Path) -> tuple[Mapping[str, Any], Path] | None:
    """run.json and the folder of the run in results/ that `known` names by its digests or its MLflow run."""
    names = [key for key in ("digest", "parameter_digest", "mlflow_run") if known.get(key)]
    for path in sorted((root / "results").rglob("run.json")):
        run = _json(path)
        if all(run.get(key) == known[key] for key in names):
            return run, path.parent
    return None


def model_header(path: Path) -> dict[str, Any] | None:
    """What `tasks.store.encode` wrote into a safetensors file; None where it did not. The tensors are not read."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                return None
            header = json.loads(json.loads(file.read(length))["__metadata__"]["header"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return header if isinstance(header, dict) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON; it was damaged or changed after fcl wrote it") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found
