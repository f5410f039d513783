"""Runs as MLflow knows them: which of them a comparison is over, and as rows of the comparison table.

A run that MLflow has in full carries these tags: `kind` (seed; a summary over seeds has method), `variant` (its row in
the table: the method, or the NAME of results/STREAM/NAME/seed-N), `stream`, `seed`, `finished`, and
`experiment_digest`, equal for runs that differ in nothing but their seed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from errors import InputError

from .delivery import tracking_uri, without_credentials

OVER_TIME = ("course.parquet", "rounds.parquet", "run.json")  # what metrics.time_comparison reads of a run


def every(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Any]:
    """All that a search of MlflowClient finds, page by page."""
    token = None
    while True:
        page = search(*arguments, page_token=token, **options)
        yield from page
        token = page.token
        if not token:
            return


def seeds(client: MlflowClient, experiments: Sequence[str], variant: str | None = None) -> list[Run]:
    """The runs of these MLflow experiments, of all variants or one, whatever became of them."""
    wanted = "tags.kind = 'seed'" + (f" and tags.variant = '{variant}'" if variant else "")
    return list(every(client.search_runs, list(experiments), wanted)) if experiments else []


def finished(runs: Sequence[Run]) -> list[Run]:
    """Those that MLflow has in full, the oldest first."""
    done = [run for run in runs if run.info.status == "FINISHED" and "finished" in run.data.tags]
    return sorted(done, key=lambda run: (run.data.tags["finished"], run.info.run_id))


def counting(runs: Sequence[Run]) -> list[Run]:
    """Of one variant's runs those that its mean is over, by seed.

    That is the newest finished run of each seed among those of the same experiment, but for the seed, as the newest.
    """
    done = finished(runs)
    if not done:
        return []
    what = done[-1].data.tags["experiment_digest"]
    newest = {int(run.data.tags["seed"]): run for run in done if run.data.tags["experiment_digest"] == what}
    return [newest[seed] for seed in sorted(newest)]


def row(run: Run) -> dict[str, str | int | float]:
    """A run as `metrics.comparison.collect` has it. Metrics with a slash are those of the run's course."""
    tags = run.data.tags
    metrics = {name: value for name, value in run.data.metrics.items() if "/" not in name}
    return {"stream": tags["stream"], "method": tags["variant"], "seed": int(tags["seed"]), **metrics}


@dataclass(frozen=True)
class Tracked:
    """What MLflow has to compare.

    Attributes:
        runs: as `metrics.comparison.collect`, one row per variant and seed.
        ids: for each (stream, variant, seed) of `runs` the MLflow run's id.
        left_out: for each (stream, variant) how many finished runs are of other experiments than its newest one.
    """

    client: MlflowClient
    runs: pd.DataFrame
    ids: dict[tuple[str, str, int], str]
    left_out: dict[tuple[str, str], int]

    def fetch_courses(self, place: Path) -> Path:
        """Files of runs with a course of all rounds, as STREAM/METHOD/seed-N below `place`, which is returned."""
        for (stream, variant, seed), run_id in self.ids.items():
            files = {file.path for file in self.client.list_artifacts(run_id)}
            if files >= set(OVER_TIME):
                folder = place / stream / variant / f"seed-{seed}"
                folder.mkdir(parents=True)
                for name in OVER_TIME:
                    self.client.download_artifacts(run_id, name, str(folder))
        return place


def collect(root: Path, stream: str | None = None) -> Tracked:
    """The finished runs that MLflow knows, of one stream or of all: also runs of others, and those with an `--out`.

    Raises:
        InputError: MLflow has no such run, or there is no MLflow database yet.
        RuntimeError: MLflow does not answer.
    """
    uri = tracking_uri(root)
    shown = without_credentials(uri)
    if "MLFLOW_TRACKING_URI" not in os.environ and not (root / "mlflow.db").exists():
        raise InputError(f"--from mlflow: no runs yet; expected MLFLOW_TRACKING_URI or the file {root / 'mlflow.db'}")
    try:
        client = MlflowClient(tracking_uri=uri)
        found = list(every(client.search_experiments))
        places = [each.experiment_id for each in found if stream in (None, each.name)]
        runs = seeds(client, places)
    except MlflowException as error:
        raise RuntimeError(f"MLflow at {shown} does not answer ({error.message.splitlines()[0]})") from error
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        with suppress(KeyError):  # a tag that a user has removed
            groups.setdefault((run.data.tags["stream"], run.data.tags["variant"]), []).append(run)
    chosen = {key: counting(members) for key, members in groups.items()}
    rows = [row(run) for members in chosen.values() for run in members]
    if not rows:
        wanted = f"finished run of stream {stream}" if stream else "finished run"
        raise InputError(f"--from mlflow: {shown} has no {wanted}; run: fcl run fedavg --stream {stream or 'digits'}")
    frame = pd.DataFrame(rows).sort_values(["stream", "method", "seed"], ignore_index=True)
    ids = {(*key, int(run.data.tags["seed"])): run.info.run_id for key, members in chosen.items() for run in members}
    return Tracked(client, frame, ids, {key: n for key, runs in groups.items() if (n := _others(runs, chosen[key]))})


def _others(runs: Sequence[Run], chosen: Sequence[Run]) -> int:
    """How many finished runs are of another experiment."""
    counts = Counter(run.data.tags["experiment_digest"] for run in finished(runs))
    return counts.total() - (counts[chosen[0].data.tags["experiment_digest"]] if chosen else 0)
