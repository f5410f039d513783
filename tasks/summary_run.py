"""One MLflow run for each method (or variant) on a stream: the seeds' runs lie below it, it has their mean and spread.

MLflow has no transactions over several calls, and machines that share one have no lock in common. So nobody adds to a
summary: whoever finishes a run compares what it says with what the runs say, writes the difference, and looks again
until there is none. Who writes last has seen all that were finished before, so what stays is right, whoever was killed
or came in between; said again, there is no difference and nothing is written. Two summaries that were made at the same
moment become one in the same way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from mlflow.entities import Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from metrics.comparison import table

from .stream_page import NOTE
from .tracked_runs import counting, every, row, seeds

ATTEMPTS = 20  # more than that many writers at one moment are not expected; the delivery is then repeated later
STATED = ("experiment_digest", "stream_digest", "git_commit")  # tags of the newest run that the summary repeats


def summary_run(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> str:
    """The id of the summary that a run with these tags belongs to; made where there is none.

    Args:
        experiment: id of the stream's MLflow experiment.
        tags: `stream`, `method` and `variant` of the run.
    """
    found = _summaries(client, experiment, tags["variant"])
    return found[0].info.run_id if found else _create(client, experiment, tags)


def refresh(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> None:
    """Makes the summary say what the runs of its variant say; puts them below it, one summary for all of them.

    Sets the runs' tag `current`: yes for those that the mean is over, no for others (an older run of the same seed, or
    with other parameters).

    Raises:
        RuntimeError: others have changed it 20 times in a row.
    """
    for _ in range(ATTEMPTS):
        try:
            if not _write_differences(client, experiment, tags):
                return
        except MlflowException as error:  # between the look and the writing another sender has deleted a second summary
            if "Current state is deleted" not in error.message:
                raise
    raise RuntimeError(f"the summary of {tags['variant']} in MLflow is changed by others all the time")


def _summaries(client: MlflowClient, experiment: str, variant: str) -> list[Run]:
    """The oldest first: that one stays."""
    wanted = f"tags.kind = 'method' and tags.variant = '{variant}'"
    found = every(client.search_runs, [experiment], wanted)
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def _create(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> str:
    own = {"kind": "method", **{name: tags[name] for name in ("stream", "method", "variant")}}
    run_id = client.create_run(experiment, run_name=tags["variant"], tags=own).info.run_id
    client.set_terminated(run_id)
    return run_id


def _write_differences(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> bool:
    """Whether there were any."""
    runs = seeds(client, [experiment], tags["variant"])
    chosen = counting(runs)
    summary_run(client, experiment, tags)  # a user may have deleted it
    kept, *others = _summaries(client, experiment, tags["variant"])
    changed = bool(others)
    current = {run.info.run_id for run in chosen}
    for run in runs:
        wanted = {MLFLOW_PARENT_RUN_ID: kept.info.run_id}
        if run.info.status == "FINISHED":
            wanted["current"] = "yes" if run.info.run_id in current else "no"
        changed |= _set_tags(client, run, wanted)
    for other in others:  # nothing lies below it any more
        client.delete_run(other.info.run_id)
    changed |= _set_tags(client, kept, _told(chosen))
    return _log(client, kept, _means(chosen)) or changed


def _set_tags(client: MlflowClient, run: Run, wanted: Mapping[str, str]) -> bool:
    missing = {name: value for name, value in wanted.items() if run.data.tags.get(name) != value}
    if missing:
        client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in missing.items()])
    return bool(missing)


def _told(chosen: Sequence[Run]) -> dict[str, str]:
    """Tags of the summary."""
    if not chosen:
        return {}
    newest = max(chosen, key=lambda run: (run.data.tags["finished"], run.info.run_id)).data.tags
    each = ", ".join(run.data.tags["seed"] for run in chosen)
    note = (
        f"`{newest['variant']}` on `{newest['stream']}`: mean, and sample standard deviation (`_std`), over the newest "
        f"finished run of each seed with the newest parameters. Seeds: {each}. Those runs have the tag `current` = yes."
    )
    return {NOTE: note, **{name: newest[name] for name in STATED if name in newest}}


def _means(chosen: Sequence[Run]) -> dict[str, float]:
    """As `fcl compare` has them: `seeds`, each metric's mean, and its `_std` where there are two seeds."""
    if not chosen:
        return {}
    means = table(pd.DataFrame([row(run) for run in chosen])).iloc[0]
    return {name: float(value) for name, value in means.items() if pd.notna(value)}


def _log(client: MlflowClient, summary: Run, wanted: Mapping[str, float]) -> bool:
    """A number that is not so any more becomes NaN: MLflow cannot take a metric back."""
    known: Mapping[str, Any] = summary.data.metrics
    gone = {name: math.nan for name, value in known.items() if name not in wanted and not math.isnan(value)}
    new = {name: value for name, value in wanted.items() if not _same(known.get(name, math.nan), value)} | gone
    if not new:
        return False
    # MLflow shows the point of the highest step, then of the latest time: clocks of two machines may differ.
    history = client.get_metric_history(summary.info.run_id, "seeds") if known else []
    step = max((point.step for point in history), default=-1) + 1
    # All of them, so that each step of the summary is a whole one; `seeds` last, since it says which step is next.
    points = sorted({**gone, **wanted}.items(), key=lambda point: point[0] == "seeds")
    now = int(time.time() * 1000)
    client.log_batch(summary.info.run_id, metrics=[Metric(name, value, now, step) for name, value in points])
    return True


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-12)  # a server sends numbers as text
