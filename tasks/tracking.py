"""MLflow: a process of its own reads the run's journal and reports it.

Training never waits for the tracking server and does not fail with it. The journal is the truth, the tracker its
reader: what it could not deliver stays in `runs/untracked/` and is sent by the next run's tracker.

    python -m tasks.tracking FOLDER TOKEN PID     reports the run in FOLDER that process PID plays
"""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock

from .files import write_json

POLL = 0.3  # seconds between looks into the journal
UNDELIVERED = 3  # exit status


class Tracker:
    """The run's side: starts the tracking process, hands it the results, learns the MLflow run's id."""

    def __init__(self, folder: Path, root: Path, description: dict[str, Any]) -> None:
        self.folder, self.root = folder, root
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
        # The tracker of a killed run may still be there: the token says which one the folder belongs to.
        self.token = uuid.uuid4().hex
        write_json(folder / "tracking.json", {"uri": uri, "root": str(root), "token": self.token, **description})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tasks.tracking", str(folder), self.token, str(os.getpid())],
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=open(folder / "tracking.log", "w"),  # noqa: SIM115 - the child's
            start_new_session=True,  # Ctrl-C is for the run; the tracker ends when the run has
        )

    def finish(
        self, results: Path, metrics: dict[str, float], tags: dict[str, str], description: dict[str, Any]
    ) -> str | None:
        """Waits until everything is reported; the MLflow run's id, or None: kept for later."""
        end = {"results": str(results), "metrics": metrics, "tags": tags, "description": description}
        write_json(finish_file(self.folder, self.token), end)
        if self.process.wait() == 0:
            return json.loads((self.folder / "mlflow.json").read_text())["run_id"]
        return None

    def keep_for_later(self, out: Path) -> None:
        """Moves what was not delivered to where the next tracker finds it."""
        finish = finish_file(self.folder, self.token)
        write_json(finish, json.loads(finish.read_text()) | {"results": str(out)})
        place = self.root / "runs" / "untracked" / f"{self.folder.name}-{time.time_ns()}"
        place.mkdir(parents=True)
        for name in ("tracking.json", finish.name, "journal.jsonl", "mlflow.json"):
            if (self.folder / name).exists():
                shutil.copy2(self.folder / name, place / name)

    def stop(self, status: str) -> None:
        """The run did not finish: MLflow shows it as `status` (FAILED or KILLED) until it is resumed."""
        write_json(finish_file(self.folder, self.token), {"status": status})
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def finish_file(folder: Path, token: str) -> Path:
    return folder / f"finish-{token}.json"


class Report:
    """The tracking process's side: one MLflow run, fed from a journal."""

    def __init__(self, folder: Path, uri: str | None = None) -> None:
        from mlflow.tracking import MlflowClient

        self.folder = folder
        self.description = json.loads((folder / "tracking.json").read_text())
        # What was kept for later goes to where MLflow is now, not to where it could not be reached.
        uri = self.description["uri"] = uri or self.description["uri"]
        with FileLock(
            Path(self.description["root"]) / "runs" / "mlflow.lock"
        ):  # two first runs would both make the tables
            self.client = MlflowClient(tracking_uri=uri)
            self.run_id, self.read = self._continued() or (self._create(), 0)

    def _continued(self) -> tuple[str, int] | None:
        """The MLflow run of an interrupted run that is being resumed, and how much of the journal it has."""
        path = self.folder / "mlflow.json"
        if not path.exists():
            return None
        known = json.loads(path.read_text())
        self.client.update_run(known["run_id"], status="RUNNING")
        return known["run_id"], min(known["delivered"], self.description["journal"])

    def _create(self) -> str:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        about = self.description
        name = about["stream"]["name"]
        experiment = self.client.get_experiment_by_name(name)
        where = experiment.experiment_id if experiment else self.client.create_experiment(name)
        run = self.client.create_run(where, run_name=about["run_name"], tags=about["tags"])
        run_id = run.info.run_id
        write_json(self.folder / "mlflow.json", {"run_id": run_id, "delivered": 0})  # at once: a retry continues it
        parameters = [Param(key, str(value)) for key, value in about["parameters"].items()]
        for start in range(0, len(parameters), 100):  # MLflow's limit for a batch
            self.client.log_batch(run_id, params=parameters[start : start + 100])
        stream = about["stream"]
        dataset = Dataset(
            name, stream["digest"][:32], "fcl", json.dumps({"source": stream["source"]}), profile=json.dumps(stream)
        )
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "train and test")])])
        return run_id

    def catch_up(self) -> None:
        """Reports the journal's new lines: one batch, however many rounds they hold."""
        from mlflow.entities import Metric

        path = self.folder / "journal.jsonl"
        data = path.read_bytes()[self.read :] if path.exists() else b""
        data = data[: data.rfind(b"\n") + 1]
        rows = [json.loads(line) for line in data.splitlines()]
        now = int(time.time() * 1000)
        points = list(self._points(rows))
        for start in range(0, len(points), 1000):  # MLflow's limit for a batch
            batch = [Metric(key, value, now, step) for key, value, step in points[start : start + 1000]]
            self.client.log_batch(self.run_id, metrics=batch)
        if data:
            self.read += len(data)
            write_json(self.folder / "mlflow.json", {"run_id": self.run_id, "delivered": self.read})

    def _points(self, rows: list[dict[str, Any]]):
        """(name, value, step): per round over all rounds of the run, per experience for accuracies."""
        rounds: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            if row["kind"] == "round":
                step = row["experience"] * self.description["rounds"] + row["round"]
                rounds.setdefault(step, []).append(row)
        for step, members in sorted(rounds.items()):
            losses = [(row["loss"], row["samples"]) for row in members if row["loss"] is not None]
            samples = sum(count for _, count in losses)
            if samples and all(math.isfinite(loss) for loss, _ in losses):
                yield "round/loss", sum(loss * count for loss, count in losses) / samples, step
            for name in ("bytes_up", "bytes_down", "seconds"):
                yield f"round/{name}", sum(row[name] for row in members), step
            yield "round/clients", len(members), step
            yield "round/refused", sum(not row["admitted"] for row in members), step
        scores: dict[tuple[str, int, int], list[float]] = {}
        for row in rows:
            if row["kind"] == "accuracy" and row["trained"] >= 0:
                scores.setdefault((row["model"], row["tested"], row["trained"]), []).append(row["accuracy"])
        seen: dict[tuple[str, int], list[float]] = {}
        for (model, tested, trained), values in sorted(scores.items()):
            mean = sum(values) / len(values)
            yield f"{model}/accuracy_on_experience_{tested}", mean, trained
            if tested <= trained:
                seen.setdefault((model, trained), []).append(mean)
        for (model, trained), values in sorted(seen.items()):
            yield f"{model}/average_accuracy", sum(values) / len(values), trained

    def finish(self) -> None:
        """Final metrics, artifacts and the model; closes the MLflow run."""
        finish = json.loads(finish_file(self.folder, self.description["token"]).read_text())
        if "status" in finish:  # it failed, or was interrupted
            self.client.set_terminated(self.run_id, finish["status"])
            return
        self._final_metrics(finish["metrics"])
        for key, value in finish["tags"].items():
            self.client.set_tag(self.run_id, key, value)
        results = Path(finish["results"])
        for path in sorted(results.iterdir()):
            if path.is_file():
                self.client.log_artifact(self.run_id, str(path))
        self.client.log_dict(self.run_id, {**finish["description"], "mlflow_run": self.run_id}, "run.json")
        self._log_model(results)
        self.client.set_terminated(self.run_id)

    def _final_metrics(self, metrics: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(key, value, now, 0) for key, value in metrics.items()])

    def _log_model(self, results: Path) -> None:
        """The main model (of a personal method: client 0's) as an MLflow model with signature and input example."""
        import mlflow
        import numpy as np
        from mlflow.models import infer_signature

        main, stream = self.description["main_model"], self.description["stream"]
        found = [results / "models" / f"{main}{suffix}.safetensors" for suffix in ("", "-0")]
        file = next((path for path in found if path.exists()), None)
        if file is None:
            return  # client 0 never took part
        images = np.zeros((1, *stream["shape"]), dtype=np.uint8)
        lock = Path(self.description["root"]) / "requirements.lock"
        probabilities = np.zeros((1, stream["classes"]), dtype=np.float32)
        mlflow.set_tracking_uri(self.description["uri"])
        with mlflow.start_run(run_id=self.run_id):
            mlflow.pyfunc.log_model(
                name="model",
                loader_module="tasks.serving",
                data_path=str(file),
                signature=infer_signature(images, probabilities),
                input_example=images,
                pip_requirements=str(lock) if lock.exists() else ["fcl"],
            )


def follow(folder: Path, token: str, parent: int) -> int:
    """Reports a run while it lasts and when it ends; ends with the process that started it."""
    about = json.loads((folder / "tracking.json").read_text())
    end, report, deadline = finish_file(folder, token), None, math.inf
    while owns(folder, token):
        finished, killed = end.exists(), os.getppid() != parent
        if finished:
            deadline = min(deadline, time.monotonic() + about["patience"])
        if killed and not report:
            return UNDELIVERED
        try:
            report = report or Report(folder)
            if not owns(folder, token):  # making it took a second, in which a resumed run may have begun
                break
            report.catch_up()
            if finished:
                report.finish()
                return 0
            # MLflow tries the logged model with its example, which imports torch: better now than at the end.
            importlib.import_module("tasks.serving")
            if killed:  # a resumed run has a tracker of its own
                report.client.set_terminated(report.run_id, "KILLED")
        except Exception as error:  # whatever keeps the tracking server from answering must not end the run
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            if time.monotonic() > deadline:
                return UNDELIVERED
        if killed and not finished:
            return UNDELIVERED
        time.sleep(POLL)
    return UNDELIVERED


def owns(folder: Path, token: str) -> bool:
    """Whether the folder's run is still the one this process was started for."""
    try:
        return json.loads((folder / "tracking.json").read_text())["token"] == token
    except OSError:
        return False


def deliver_kept(root: Path, uri: str) -> None:
    """Sends what earlier runs could not."""
    for folder in sorted((root / "runs" / "untracked").glob("*")):
        try:
            report = Report(folder, uri)
            report.catch_up()
            report.finish()
        except Exception as error:  # kept for the next time
            print(f"{folder.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def main(folder: Path, token: str, parent: int) -> int:
    about = json.loads((folder / "tracking.json").read_text())
    # The tracker of a killed run ends within a second or so; until then its successor waits here.
    with FileLock(folder.parent / "locks" / f"{folder.name}.tracker.lock"):
        status = follow(folder, token, parent)
    if status == 0:
        with FileLock(Path(about["root"]) / "runs" / "untracked.lock"):  # of two trackers one sends them
            deliver_kept(Path(about["root"]), about["uri"])
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
