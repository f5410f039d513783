"""The end of a run: matrix, metrics, figures, models and run.json, complete or not there at all."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from errors import InputError
from methods import State
from metrics.experts import transfer
from metrics.plots import draw_accuracy, draw_allocation, draw_comparison, draw_matrix, draw_replacements
from metrics.provenance import origin
from metrics.retention import general_retention
from metrics.summary import over_experiences, summarise
from metrics.task_measures import task_measures

from .files import file_digest, sync, sync_tree, write_json
from .foundation import read
from .patience import space_for
from .run import LOCK, Run
from .saved import BACKBONE, content
from .store import encode

MATRIX = {"model": str, "client": int, "trained": int, "tested": int, "accuracy": float, "samples": int}
CURVES = {
    "client": int,
    "experience": int,
    "round": int,
    "training": str,
    "epoch": int,
    "accuracy": float,
    "samples": int,
}
COURSE = {"experience": int, "round": int, "tested": int, "accuracy": float, "samples": int}
PACKAGES = ("torch", "prefect", "mlflow", "dvc")  # whose versions run.json has
DRAWN = {"allocation": draw_allocation, "replacements": draw_replacements}  # a method's own tables that have a figure
TASKS = {
    "model": str,
    "client": int,
    "trained": int,
    "tested": int,
    "task": str,
    "measure": str,
    "value": float,
    "samples": int,
}
GENERAL = {"task": str, "trained": int, "accuracy": float, "samples": int}
ROUNDS = {
    "experience": int,
    "round": int,
    "client": int,
    "samples": int,
    "steps": int,
    "loss": float,
    "bytes_up": int,
    "bytes_down": int,
    "seconds": float,
    "simulated": float,
    "admitted": bool,
    "reason": str,
}


def frame(rows: list[dict[str, Any]], columns: dict[str, type], order: list[str]) -> pd.DataFrame:
    """Records as a table with fixed columns and types, in an order that does not depend on who finished first."""
    return pd.DataFrame(rows, columns=list(columns)).astype(columns).sort_values(order, ignore_index=True)


@contextmanager
def whole_or_gone(folder: Path) -> Iterator[None]:
    """Removes `folder`, the results on their way, where they cannot be written.

    Raises:
        StoreFailed: there is no space.
    """
    try:
        with space_for(str(folder.parent)):
            yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write_results(run: Run) -> Path:
    """Writes everything but run.json into a folder beside `run.out`; `publish` completes it and puts it in place.

    Raises:
        StoreFailed: there is no space; nothing is left, and a resumed run writes them again.
    """
    for kind in ("tmp", "old"):  # left by a run that was killed here; this one holds the lock
        for left in run.out.parent.glob(f".{run.out.name}.*.{kind}"):
            shutil.rmtree(left)
    folder = run.out.parent / f".{run.out.name}.{uuid.uuid4().hex[:8]}.tmp"
    about = origin({**identify(run), **run.source})
    with whole_or_gone(folder):
        folder.mkdir(parents=True)
        write_tables(run, folder, about)
        write_models(run, folder / "models")
    return folder


def write_tables(run: Run, folder: Path, about: Mapping[str, Any]) -> None:
    """Tables, metrics and figures; `about`, where they come from, goes into the figures."""
    matrix = frame(run.folder.records("accuracy"), MATRIX, ["model", "trained", "tested", "client"])
    columns = ROUNDS | ({"fault": str} if run.experiment.faults else {})
    rounds = frame(run.folder.records("round"), columns, ["experience", "round", "client"])
    matrix.to_parquet(folder / "accuracy_matrix.parquet", index=False)
    rounds.to_parquet(folder / "rounds.parquet", index=False)
    main = main_kind(run)
    metrics = summarise(matrix, rounds, main)
    curves = frame(run.folder.records("curve"), CURVES, ["client", "experience", "round", "training", "epoch"])
    if len(curves):
        curves.to_parquet(folder / "learning_curves.parquet", index=False)
        metrics |= transfer(curves)
    measures = frame(run.folder.records("task"), TASKS, ["model", "trained", "tested", "client", "task", "measure"])
    if len(measures):
        measures.to_parquet(folder / "tasks.parquet", index=False)
        metrics |= task_measures(measures, main)
    course = frame(run.folder.records("course"), COURSE, ["experience", "round", "tested"])
    if len(course):
        course.to_parquet(folder / "course.parquet", index=False)
    for name, rows in run.folder.tables().items():  # what the method recorded, as it did
        table = pd.DataFrame(rows)
        table.to_parquet(folder / f"{name}.parquet", index=False)
        if name in DRAWN:
            DRAWN[name](table, folder / f"{name}.png", run.experiment.title, about)
    if run.built:
        general = frame(run.folder.records("general"), GENERAL, ["task", "trained"])
        general.to_parquet(folder / "general.parquet", index=False)
        metrics |= general_retention(general)
    write_json(folder / "metrics.json", metrics)
    draw_accuracy(matrix, main, run.experiment.title, folder / "accuracy.png", about)
    draw_matrix(matrix, main, run.experiment.title, folder / "matrix.png", about)
    kinds = list(run.site.method.evaluates)
    if len(kinds) > 1:
        courses = {kind: [over_experiences(matrix, rounds, kind)] for kind in kinds}
        title = f"{run.experiment.title}: average accuracy so far"
        draw_comparison(courses, folder / "models.png", title, about)


def main_kind(run: Run) -> str:
    return next(iter(run.site.method.evaluates))


def write_models(run: Run, folder: Path) -> None:
    """The final models as safetensors: `global.safetensors`, or one file a client (`personal-3.safetensors`).

    Their headers name the run, but for the commit: equal experiments have equal bytes. The foundation model, where
    there is one, lies beside them once (`backbone/`).
    """
    folder.mkdir()
    if run.built:
        shutil.copytree(run.built.folder, folder / BACKBONE)
        if read(folder / BACKBONE) != run.built.record:
            raise InputError(f"built/foundations/{run.built.folder.name} was made again while this run used it")
    site = run.site
    server = site.read(run.progress.server)
    setting = site.method.setting
    identity = identify(run)
    took_part = {row["client"] for row in run.folder.records("round") if row["admitted"]}
    for kind, scope in site.method.evaluates.items():
        for client in site.method.participants if scope == "client" else (-1,):
            held = run.progress.clients.get(client)
            state = site.read(held) if held else State()
            if (scope == "client" and client not in took_part) or kind in site.method.told:
                continue
            model = site.method.predictor(kind, server, state, client)
            name = kind if client < 0 else f"{kind}-{client}"
            seen = list(site.seen(client, site.stream.experiences - 1))
            tensors, about = content(model, setting.architectures[setting.place(client)])
            header = {**about, "kind": kind, "client": client, "seen": seen, "run": identity}
            (folder / f"{name}.safetensors").write_bytes(encode(tensors, header))


def identify(run: Run) -> dict[str, Any]:
    """What ran and what came out; equal wherever and however often it is run."""
    return {
        "digest": run.digest(),
        "parameter_digest": run.experiment.digest,
        "method": run.experiment.method,
        "stream": run.experiment.stream,
        "seed": run.experiment.seed,
        "stream_digest": run.site.stream.digest,
    }


def describe(run: Run) -> dict[str, Any]:
    """What run.json says: enough to repeat the experiment and to trust its result."""
    return {
        **identify(run),
        "experiment": run.experiment.identity(),
        "foundation_digest": run.built.record["digest"] if run.built else None,
        "lock_digest": file_digest(LOCK),
        **run.source,
        "prefect_flow_run": run.flow_runs[-1] if run.flow_runs else None,
        "main_model": main_kind(run),
        "runner": run.experiment.run.runner,
        "workers": run.experiment.run.workers,
        "device": run.site.device,
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(run.site.device) if run.site.device.startswith("cuda") else None,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "failures": run.notes,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.started)),
        "seconds": round(time.time() - run.started, 3),
    }


def publish(run: Run, folder: Path, description: dict[str, Any]) -> None:
    """Completes the results with run.json and moves them to `run.out`, replacing an earlier run of the experiment.

    run.json has the digests of all other files. All would survive a power cut before the run's folder, from which they
    could be made again, goes.

    Raises:
        StoreFailed: there is no space; nothing of them is left.
    """
    with whole_or_gone(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digests = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
        write_json(folder / "run.json", {**description, "files": digests})
        sync_tree(folder)
    old = run.out.with_name(f".{run.out.name}.{uuid.uuid4().hex[:8]}.old")
    if run.out.exists():
        run.out.rename(old)
    folder.rename(run.out)
    sync([run.out.parent])
    shutil.rmtree(old, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
