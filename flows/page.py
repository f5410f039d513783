"""A finished run's page in the Prefect UI: its numbers, the accuracy figure, and where everything else is."""

from __future__ import annotations

import base64
import io
import os
import platform
import re
from pathlib import Path
from uuid import UUID

from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate

from metrics.comparison import COLUMNS, PERCENT
from parameters import Experiment
from tasks.comparison_view import comparison_url
from tasks.delivery import tracking_uri, without_credentials
from tasks.results import read_json
from tasks.run import Run

from .services import MLFLOW_UI

FIGURE_WIDTH = 760  # pixels; the artifact lies in Prefect's database


def key_of(*words: str) -> str:
    """An artifact's key: lower-case letters, digits and dashes. Artifacts of one key are versions of one thing."""
    return re.sub("[^a-z0-9]+", "-", "-".join(words).lower())


def key(what: str, experiment: Experiment) -> str:
    """The key of what an experiment shows."""
    return key_of(what, experiment.stream, experiment.method, str(experiment.seed))


def show_results(run: Run) -> None:
    """Adds the page of `run`'s published results to its flow run; where that fails it is noted."""
    try:
        show(run.experiment, run.out, run.root, UUID(run.flow_runs[-1]))
    except Exception as error:  # Prefect's and its HTTP client's kinds; the results are in place all the same
        reason = " ".join(str(error).split())
        run.note(f"the results are not shown in the Prefect UI ({type(error).__name__}: {reason})")


def show(experiment: Experiment, out: Path, root: Path, flow_run: UUID) -> None:
    """Makes the page of the results in `out` an artifact of `flow_run`."""
    artifact = ArtifactCreate(
        key=key("results", experiment),
        type="markdown",
        description=f"{experiment.title}: results",
        data=page(experiment.title, out, root),
        flow_run_id=flow_run,
    )
    get_client(sync_client=True).create_artifact(artifact)


def page(title: str, out: Path, root: Path) -> str:
    """Markdown: a table of the main metrics, the accuracy figure, the MLflow run and the folder."""
    metrics, about = read_json(out / "metrics.json"), read_json(out / "run.json")
    rows = [
        f"| {name.replace('_', ' ') if factor == PERCENT else heading} | {factor * metrics[name]:.1f}{unit(factor)} |"
        for heading, (name, factor, *_) in COLUMNS.items()
        if name in metrics
    ]
    folder = out.relative_to(root) if out.is_relative_to(root) else out
    lines = [
        f"# {title}",
        "",
        "| metric | value |",
        "| --- | ---: |",
        *rows,
        "",
        f"![accuracy over experiences]({figure(out / 'accuracy.png')})",
        "",
        f"- all files: `{folder}` on `{platform.node()}`",
        f"- in MLflow: {mlflow_link(about, root)}",
        f"- digest of all final states: `{about['digest']}`",
        f"- {about['seconds']:.0f} s on {about['device']}, {about['workers']} workers ({about['runner']})",
    ]
    return "\n".join(lines)


def unit(factor: float) -> str:
    """Of a metric that is shown multiplied by `factor`."""
    return " %" if factor == PERCENT else ""


def mlflow_link(about: dict, root: Path) -> str:
    """Links to the MLflow run and the comparison it is in where a server of MLflow is known, else the run's id."""
    run, experiment = about.get("mlflow_run"), about.get("mlflow_experiment")
    if not run:
        return "not yet: MLflow could not be reached, the next run sends the records"
    uri = without_credentials(tracking_uri(root))
    server = uri if uri.startswith(("http://", "https://")) else os.environ.get(MLFLOW_UI)
    if not server or not experiment:
        return f"run `{run}`"
    address = f"{server.rstrip('/')}/#/experiments/{experiment}/runs/{run}"
    return f"[run {run}]({address}), [all methods on {about['stream']}]({comparison_url(server, experiment)})"


def figure(path: Path) -> str:
    """A PNG as a data URL, made smaller: 90 kB become about 10."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((FIGURE_WIDTH, FIGURE_WIDTH))
        packed = io.BytesIO()
        small.quantize(64).save(packed, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()
