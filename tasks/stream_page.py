"""A stream's MLflow experiment: what the stream is, how to compare on it, and the view that compares.

MLflow's UI keeps views that users share as tags of the experiment; `?viewStateShareKey=comparison` opens ours: the
methods by their final average accuracy, as a table or as charts.
"""

from __future__ import annotations

import json
from typing import Any

from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from .comparison_view import KEY, VIEW_TAG

NOTE = "mlflow.note.content"  # the description in the UI, Markdown
KIND_TAG = ("mlflow.experimentKind", "custom_model_development")  # else the UI asks, or opens the view for LLM traces
CHARTS = ("final_average_accuracy", "average_incremental_accuracy", "forgetting", "bytes_up")
COLUMNS = (
    *("metrics.`seeds`", "metrics.`final_average_accuracy`", "metrics.`final_average_accuracy_std`"),
    *("metrics.`average_incremental_accuracy`", "metrics.`forgetting`", "metrics.`forgetting_std`"),
    *("metrics.`bytes_up`", "metrics.`bytes_down`", "tags.`git_commit`"),
)


def experiment_of(client: MlflowClient, stream: dict[str, Any]) -> str:
    """The id of the stream's MLflow experiment, made and described where need be.

    Args:
        stream: `flows.description.tracking_description`'s.
    Raises:
        RuntimeError: a user has deleted the experiment.
    """
    found = client.get_experiment_by_name(stream["name"])
    if found is None:
        try:
            client.create_experiment(stream["name"])
        except MlflowException as error:  # another machine was faster
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(stream["name"])
    if found.lifecycle_stage != "active":
        raise RuntimeError(
            f"MLflow's experiment {stream['name']} (id {found.experiment_id}) was deleted; restore it, or remove it "
            "for good: mlflow gc --experiment-ids"
        )
    describe(client, found, stream)
    return found.experiment_id


def describe(client: MlflowClient, experiment: Experiment, stream: dict[str, Any]) -> None:
    """Tells of the stream, once: what a user has changed stays until the stream is another one."""
    if experiment.tags.get("stream_digest") == stream["digest"] and VIEW_TAG in experiment.tags:
        return
    told = [(NOTE, note(stream)), KIND_TAG, (VIEW_TAG, json.dumps(view()))]
    for name, value in (*told, ("stream_digest", stream["digest"])):  # the digest last: half of it is told again
        client.set_experiment_tag(experiment.experiment_id, name, value)


def note(stream: dict[str, Any]) -> str:
    """Markdown."""
    what = "x".join(map(str, stream["shape"]))
    return (
        f"**Stream `{stream['name']}`** (source `{stream['source']}`): {stream['samples']} samples ({what}), "
        f"{stream['classes']} classes, {stream['clients']} clients, {stream['experiences']} experiences. "
        f"Digest `{stream['digest']}`.\n\n"
        "A run with `kind` = method is the mean over the seeds below it (`_std`: sample standard deviation). "
        f"The comparison: `?viewStateShareKey={KEY}` at the end of this page's address, or the filter "
        "`tags.kind = 'method'` with the column `final_average_accuracy`. Single runs of the comparison: "
        "`tags.current = 'yes'`. The same table in a terminal: "
        f"`fcl compare --from mlflow --stream {stream['name']}`."
    )


def view() -> dict[str, Any]:
    """The state of the UI that compares methods."""
    section = "comparison"
    charts = [
        {
            "uuid": f"{section}-{name}",
            "type": "BAR",
            "metricKey": name,
            "metricSectionId": section,
            "runsCountToCompare": 20,
            "deleted": False,
            "isGenerated": False,
        }
        for name in CHARTS
    ]
    shown = {"uuid": section, "name": "methods, mean over seeds", "display": True, "isReordered": False}
    return {
        "searchFilter": "tags.kind = 'method'",
        "orderByKey": "metrics.`final_average_accuracy`",
        "orderByAsc": False,
        "selectedColumns": list(COLUMNS),
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [{**shown, "deleted": False, "isGenerated": False}],
    }
