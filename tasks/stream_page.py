"""A stream's MLflow experiment: what the stream is, how to compare on it, and the views that compare.

MLflow's UI keeps views that users share as tags of the experiment; `?viewStateShareKey=comparison` opens ours: the
methods by their final average accuracy, as a table or as charts; `seeds` the runs that they are the means of.
"""

from __future__ import annotations

import json
from typing import Any

from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from .comparison_view import COMPARISON, SEEDS, VIEW_TAG

NOTE = "mlflow.note.content"  # the description in the UI, Markdown
KIND_TAG = "mlflow.experimentKind"  # without it the UI asks, or opens the page for traces of language models
CHARTS = ("final_average_accuracy", "average_incremental_accuracy", "forgetting", "bytes_up")
COLUMNS = {
    COMPARISON: (
        *("metrics.`seeds`", "metrics.`final_average_accuracy`", "metrics.`final_average_accuracy_std`"),
        *("metrics.`average_incremental_accuracy`", "metrics.`forgetting`", "metrics.`forgetting_std`"),
        *("metrics.`bytes_up`", "metrics.`bytes_down`", "tags.`git_commit`"),
    ),
    SEEDS: (
        *("tags.`variant`", "tags.`seed`", "metrics.`final_average_accuracy`", "metrics.`forgetting`"),
        *("metrics.`bytes_up`", "tags.`command`", "tags.`git_commit`", "tags.`digest`"),
    ),
}
WIDTH = 150  # pixels of a column


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
    """Tells of the stream, once: a description that a user has changed stays until the stream is another one."""
    told = {KIND_TAG: "custom_model_development"}
    told |= {f"{VIEW_TAG}{key}": json.dumps(view(key)) for key in COLUMNS}
    if experiment.tags.get("stream_digest") != stream["digest"]:
        told |= {NOTE: note(stream), "stream_digest": stream["digest"]}  # the digest last: half of it is told again
    for name, value in told.items():
        if experiment.tags.get(name) != value:
            client.set_experiment_tag(experiment.experiment_id, name, value)


def note(stream: dict[str, Any]) -> str:
    """Markdown."""
    what = "x".join(map(str, stream["shape"]))
    return (
        f"**Stream `{stream['name']}`** (source `{stream['source']}`): {stream['samples']} samples ({what}), "
        f"{stream['classes']} classes, {stream['clients']} clients, {stream['experiences']} experiences. "
        f"Digest `{stream['digest']}`.\n\n"
        "A run with `kind` = method is the mean over the seeds below it (`_std`: sample standard deviation). "
        f"Add `?viewStateShareKey={COMPARISON}` to this page's address, and methods are compared, as a table or as "
        f"charts (filter `tags.kind = 'method'`); `{SEEDS}` shows the runs that they are the means of (filter "
        "`tags.current = 'yes'`). The same table in a terminal: "
        f"`fcl compare --from mlflow --stream {stream['name']}`."
    )


def view(key: str) -> dict[str, Any]:
    """A state of the UI: `comparison`, the methods by accuracy, or `seeds`, the runs that they are the means of."""
    section = {"uuid": key, "name": "mean over seeds" if key == COMPARISON else "seeds", "display": True}
    charts = [
        {
            "uuid": f"{key}-{name}",
            "type": "BAR",
            "metricKey": name,
            "metricSectionId": key,
            "runsCountToCompare": 20,
            "deleted": False,
            "isGenerated": False,
        }
        for name in CHARTS
    ]
    return {
        "searchFilter": "tags.kind = 'method'" if key == COMPARISON else "tags.current = 'yes'",
        "orderByKey": "metrics.`final_average_accuracy`" if key == COMPARISON else "tags.`variant`",
        "orderByAsc": key != COMPARISON,
        "selectedColumns": list(COLUMNS[key]),
        "columnOrder": list(COLUMNS[key]),
        "columnWidths": dict.fromkeys(COLUMNS[key], WIDTH),
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [section | {"columns": 2, "isReordered": False, "deleted": False, "isGenerated": False}],
    }
