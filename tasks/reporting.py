"""One MLflow run, fed from a run's journal and finished from its results. Only the tracking process imports MLflow.

Everything can be said twice, since a sender that is killed is not missed: the MLflow run is found again by its lineage,
points carry the time of their journal line (MLflow keeps equal points once), and the model and its registered version
are looked for first. What is said of several runs (the mean over seeds, the aliases of a registered model) is derived
from what MLflow has of them, again after each: see `tasks/summary_run.py`.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from .artifacts import fetch, log_model
from .registered import MEASURE, register
from .stream_page import experiment_of
from .summary_run import refresh, summary_run

Point = tuple[str, float, int, int]  # name, value, milliseconds since 1970, step


class Report:
    """The MLflow run of one run of ours.

    Args:
        description: what MLflow is told when a run starts (`flows.description.tracking_description`).
        journal: the run's journal.
        known: what an earlier report of the same run kept, or None.
        keep: called with what a later report of the same run must know, as soon as that changes.
    """

    def __init__(
        self,
        description: dict[str, Any],
        journal: Path,
        known: dict[str, Any] | None,
        keep: Callable[[dict[str, Any]], None],
    ) -> None:
        self.description, self.keep = description, keep
        self.journal = open(journal, "rb")  # noqa: SIM115 - a new run may replace the file: this one stays ours
        with FileLock(Path(description["root"]) / "runs" / "mlflow.lock"):  # two first runs would both make the tables
            self.client = MlflowClient(tracking_uri=description["uri"])
            run = (known and self._get(known["run_id"])) or self._found()
            continued = known if run and known and run.info.run_id == known["run_id"] else {}
            run = run or self._create()  # here, too: two first runs would each make the summary of their method
        self.run_id, self.experiment_id = run.info.run_id, run.info.experiment_id
        # A resumed run has cut off the lines that its checkpoint did not count.
        self.read = min(continued.get("delivered", 0), description["journal"])
        self.described = continued.get("described", False)
        self._keep()  # at once: whoever comes later continues this run
        if run.info.status != "RUNNING":
            self.client.update_run(self.run_id, status="RUNNING")
        if not self.described:
            self._describe()

    def _get(self, run_id: str) -> Run | None:
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # MLflow is somewhere else by now
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None  # else a user has deleted it

    def _found(self) -> Run | None:
        """The MLflow run that somebody made and was killed before it could say so."""
        experiment = self.client.get_experiment_by_name(self.description["stream"]["name"])
        if experiment is None:
            return None
        lineage = f"tags.lineage = '{self.description['lineage']}'"
        return next(iter(self.client.search_runs([experiment.experiment_id], lineage, max_results=1)), None)

    def _create(self) -> Run:
        about = self.description
        where = experiment_of(self.client, about["stream"])
        above = summary_run(self.client, where, about["tags"])
        tags = about["tags"] | {"lineage": about["lineage"], "kind": "seed", MLFLOW_PARENT_RUN_ID: above}
        return self.client.create_run(where, run_name=about["run_name"], tags=tags)

    def _describe(self) -> None:
        parameters = [Param(key, str(value)) for key, value in self.description["parameters"].items()]
        for start in range(0, len(parameters), 100):  # MLflow's limit for a batch
            self.client.log_batch(self.run_id, params=parameters[start : start + 100])
        stream = self.description["stream"]
        source = json.dumps({"source": stream["source"]})
        dataset = Dataset(stream["name"], stream["digest"][:32], "fcl", source, profile=json.dumps(stream))
        context = [InputTag("mlflow.data.context", "train and test")]
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, context)])
        self.described = True
        self._keep()

    def _keep(self) -> None:
        about = {"run_id": self.run_id, "experiment_id": self.experiment_id}
        self.keep({**about, "delivered": self.read, "described": self.described})

    def catch_up(self, counted: int) -> None:
        """Reports the journal's new lines, up to byte `counted`: in one batch, however many rounds they hold."""
        if counted <= self.read:
            return
        self.journal.seek(self.read)
        rows = [json.loads(line) for line in self.journal.read(counted - self.read).splitlines()]
        self._log([*self._rounds(rows), *self._accuracies(rows)])
        self.read = counted
        self._keep()

    def _log(self, points: list[Point], model: str | None = None) -> None:
        for start in range(0, len(points), 1000):  # MLflow's limit for a batch
            batch = points[start : start + 1000]
            about = {"run_id": self.run_id, "model_id": model} if model else {}
            self.client.log_batch(self.run_id, metrics=[Metric(*point, **about) for point in batch])

    def _rounds(self, rows: list[dict[str, Any]]) -> Iterator[Point]:
        """Per round, over all rounds of the run."""
        rounds: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            if row["kind"] == "round":
                step = row["experience"] * self.description["rounds"] + row["round"]
                rounds.setdefault(step, []).append(row)
        for step, members in sorted(rounds.items()):
            losses = [(row["loss"], row["samples"]) for row in members if row["loss"] is not None]
            samples = sum(count for _, count in losses)
            when = members[0]["time"]
            if samples and all(math.isfinite(loss) for loss, _ in losses):
                yield "round/loss", sum(loss * count for loss, count in losses) / samples, when, step
            for name in ("bytes_up", "bytes_down", "seconds"):
                yield f"round/{name}", sum(row[name] for row in members), when, step
            yield "round/clients", len(members), when, step
            refused = [row for row in members if not row["admitted"] and row.get("fault") not in ("drop", "late")]
            yield "round/refused", len(refused), when, step

    def _accuracies(self, rows: list[dict[str, Any]]) -> Iterator[Point]:
        """Per experience."""
        scores: dict[tuple[str, int, int], list[float]] = {}
        times: dict[int, int] = {}
        for row in rows:
            if row["kind"] == "accuracy" and row["trained"] >= 0:
                scores.setdefault((row["model"], row["tested"], row["trained"]), []).append(row["accuracy"])
                times[row["trained"]] = row["time"]
        seen: dict[tuple[str, int], list[float]] = {}
        for (model, tested, trained), values in sorted(scores.items()):
            mean = sum(values) / len(values)
            yield f"{model}/accuracy_on_experience_{tested}", mean, times[trained], trained
            if tested <= trained:
                seen.setdefault((model, trained), []).append(mean)
        for (model, trained), values in sorted(seen.items()):
            yield f"{model}/average_accuracy", sum(values) / len(values), times[trained], trained

    def stop(self, status: str) -> None:
        """The run failed or was interrupted."""
        self.client.set_terminated(self.run_id, status)
        self.journal.close()

    def finish(self, end: dict[str, Any]) -> None:
        """Final metrics, artifacts and the model; closes the MLflow run, and tells what it changes for its method.

        `end` is a record's finish.json.
        """
        points = [(name, value, end["time"], 0) for name, value in end["metrics"].items()]
        self._log(points)
        told = {name: str(end["run"][name]) for name in ("digest", "prefect_flow_run")}
        told["finished"] = time_of(end["time"])
        self.client.log_batch(self.run_id, tags=[RunTag(*pair) for pair in told.items()])
        self.client.log_dict(self.run_id, {**end["run"], "mlflow_run": self.run_id}, "run.json")
        with tempfile.TemporaryDirectory() as place:
            files, model = Path(place) / "files", Path(place) / "model"
            if fetch(Path(end["results"]), end["files"], files) and fetch(Path(end["results"]), end["model"], model):
                self.client.log_artifacts(self.run_id, str(files))
                if end["model"]:
                    self._log_model(model, points, told, end["metrics"])
            else:
                self.client.set_tag(self.run_id, "results", f"were replaced in {end['results']} before they were sent")
        self.client.set_terminated(self.run_id)
        refresh(self.client, self.experiment_id, self.description["tags"])
        self.journal.close()

    def _log_model(self, folder: Path, points: list[Point], told: dict[str, str], metrics: dict[str, float]) -> None:
        """The model whose files lie in `folder`, as the run's and as a version of the method's registered model."""
        files = list(folder.iterdir())
        what = files[0] if len(files) == 1 else folder
        model = log_model(self.client, self.run_id, what, self.description)
        self._log(points, model)
        about = self.description["tags"]
        names = ("stream", "method", "variant", "seed", "stream_digest", "git_commit", "experiment_digest")
        tags = {name: about[name] for name in names} | told | {"run": self.description["run_name"]}
        measured = {MEASURE: repr(metrics[MEASURE])} if MEASURE in metrics else {}
        register(self.client, self.run_id, model, tags | measured)


def time_of(milliseconds: int) -> str:
    """Milliseconds since 1970 as 2026-11-22T03:04:05.678+00:00: text in the order of time."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
