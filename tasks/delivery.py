"""Results on their way to MLflow: a folder under `runs/untracked/` for each finished run that it does not have in full.

A record appears whole and goes when all of it is delivered. Who sends one holds its lock meanwhile, so nothing is sent
twice at a time; sent twice one after the other (the sender was killed) it comes to the same, see `tasks/reporting.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import chdir
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from .files import file_digest, write_json

SLOW = 120  # seconds; a record that another process has been sending for so long is not waited for any longer


def tracking_uri(root: Path) -> str:
    """Where MLflow is: `MLFLOW_TRACKING_URI`, or a database in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


def without_credentials(uri: str) -> str:
    """The address as it may be shown and kept: without user and password."""
    about = urlsplit(uri)
    return about._replace(netloc=about.netloc.rpartition("@")[2]).geturl() if "@" in about.netloc else uri


def file_record(root: Path, folder: Path, results: Path) -> Path | None:
    """Files what MLflow is to get of a finished run; None where `folder` has not tracked the run in `results`.

    Args:
        folder: the run's folder with tracking.json, journal.jsonl and, where the MLflow run is known, mlflow.json.
        results: the run's published results. They stay where they are; the record has the digests of their files.
    """
    run = json.loads((results / "run.json").read_text())
    tracked = folder / "tracking.json"
    if not tracked.exists() or json.loads(tracked.read_text())["lineage"] != run.get("lineage"):
        return None
    name = f"{folder.name}-{time.time_ns()}"
    place = root / "runs" / "untracked" / f".{name}.tmp"
    for left in place.parent.glob(f".{folder.name}-*.tmp"):  # of a run that was killed here
        shutil.rmtree(left, ignore_errors=True)
    place.mkdir(parents=True)
    for file in ("tracking.json", "journal.jsonl", "mlflow.json"):
        if (folder / file).exists():
            shutil.copyfile(folder / file, place / file)
    main = run["main_model"]
    files = sorted(path for path in results.iterdir() if path.is_file() and not path.name.startswith("."))
    models = [results / "models" / f"{main}{suffix}.safetensors" for suffix in ("", "-0")]  # personal: client 0's
    model = next((path for path in models if path.exists()), None)  # client 0 may never have taken part
    backbone = sorted((results / "models" / "backbone").glob("*"))  # what a model with a foundation model needs
    about = {
        "results": str(results),
        "files": {path.name: file_digest(path) for path in files if path.name != "run.json"},
        "model": model and {str(path.relative_to(results)): file_digest(path) for path in (model, *backbone)},
        "run": run,
        "metrics": json.loads((results / "metrics.json").read_text()),
        "time": int((folder / "journal.jsonl").stat().st_mtime * 1000),
    }
    write_json(place / "finish.json", about)
    return place.rename(place.with_name(name))


def records(root: Path) -> list[Path]:
    """What is not delivered yet, the oldest last file name first."""
    return sorted(path for path in (root / "runs" / "untracked").glob("*") if not path.name.startswith("."))


def deliver(record: Path, root: Path, uri: str, patience: float = 0) -> bool:
    """Sends a record to the MLflow at `uri`; whether nothing is left to do for it here.

    One that another process is sending is left to it after `patience` seconds: nothing to do, with a patience of 0.
    """
    try:
        with FileLock(root / "runs" / "locks" / f"untracked-{record.name}.lock", timeout=patience):
            if record.exists():
                send(record, uri)
                done = record.rename(record.with_name(f".{record.name}.tmp"))  # half a record is none
                shutil.rmtree(done, ignore_errors=True)
    except Timeout:
        return patience == 0
    except Exception as error:  # kept for the next time
        print(f"{record.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return False
    return True


def send(record: Path, uri: str) -> None:
    """Tells MLflow the rest of a finished run: what the journal still has, results, the model, its end."""
    from .reporting import Report

    known = record / "mlflow.json"
    # What was kept for later goes to where MLflow is now, not to where it could not be reached.
    about = json.loads((record / "tracking.json").read_text()) | {"uri": uri}
    journal = record / "journal.jsonl"
    state = json.loads(known.read_text()) if known.exists() else None
    with chdir(about["root"]):  # MLflow puts the artifacts of a local database under the current folder
        report = Report(about, journal, state, partial(write_json, known))
        report.catch_up(journal.stat().st_size)
        report.finish(json.loads((record / "finish.json").read_text()))


def deliver_kept(root: Path, uri: str) -> None:
    """Sends what earlier runs could not, but for what another process is sending."""
    for record in records(root):
        deliver(record, root, uri)


def deliver_all(root: Path) -> list[Path]:
    """Waits for what is on its way to MLflow, sends what was kept; returns the records that could not be delivered."""
    return [record for record in records(root) if not deliver(record, root, tracking_uri(root), SLOW)]
