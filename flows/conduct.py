"""From a checked experiment to its results: servers, tracking, the flow, publication."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from parameters import Experiment
from tasks import interruption
from tasks.checkpoint import RunFolder
from tasks.delivery import file_record
from tasks.results import describe, publish, read_json, write_results
from tasks.run import Run, check_out, finished_results, run_folder
from tasks.tracking import Tracker

from .description import tracking_description
from .server import outlast, prefect_server
from .settings import importing


def conduct(spec: Experiment, root: Path, out: Path, resume: bool, console: Console) -> None:
    """Runs `spec`, resumes it or finds it finished, and says where the results are."""
    check_out(out, spec)
    if resume and finished_results(out):
        tidy(run_folder(spec, root, out), root, out)
        console.print(f"{spec.title} is finished: {out}", highlight=False, soft_wrap=True)
        return
    with progress_bar(console, spec.title) as bar, Tracker() as tracker, Run(spec, root, out, resume, bar) as run:
        metrics = play(run, tracker)
        notes = run.notes
    for note in notes:
        console.print(f"[yellow]note:[/] {note.splitlines()[0]}", highlight=False, soft_wrap=True)
    shown = ("final_average_accuracy", "forgetting")
    summary = ", ".join(f"{name.replace('_', ' ')} {metrics[name]:.3f}" for name in shown if name in metrics)
    summary = summary or "finished"
    console.print(f"{spec.title}: {summary}; results in {out}", highlight=False, soft_wrap=True)


def play(run: Run, tracker: Tracker | None = None) -> dict[str, float]:
    """The flow and what surrounds it; returns the final metrics."""
    with prefect_server() as wait:
        if tracker:
            tracker.follow(run.folder.path, run.root, tracking_description(run))
        try:
            with importing():
                from httpx import HTTPError
                from prefect.exceptions import ObjectNotFound
                from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

                from .experiment import start
                from .page import show_results

                run.workers.wait_until_ready()
            wait()
            # A flow's heartbeat thread sleeps in whole seconds and is joined at its end: a second lost.
            # The server's address is said again, since Prefect read the environment when it was first imported.
            now = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
            if "PREFECT_API_URL" in os.environ:
                now[PREFECT_API_URL] = os.environ["PREFECT_API_URL"]
            with temporary_settings(now):
                try:
                    start(run)
                except (HTTPError, ObjectNotFound) as error:  # gone, or back without its records
                    if not run.flow_runs:
                        raise
                    run.notes.append(outlast(error, finished=run.steps_done == run.steps))
            folder = write_results(run)
            metrics = read_json(folder / "metrics.json")
            description = describe(run)
            if tracker:
                description["mlflow_run"] = tracker.run_id(run.experiment.run.tracking_patience)
                description["mlflow_experiment"] = tracker.experiment_id
                description["lineage"] = tracker.lineage
            interruption.heed()
            publish(run, folder, description)
            show_results(run)
            if tracker:
                tracker.deliver(file_record(run.root, run.folder.path, run.out))
        except BaseException as error:
            if tracker:
                tracker.stop("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
    if tracker and description["mlflow_run"] is None:
        run.notes.append("MLflow could not be reached; its records are kept in runs/untracked and sent by the next run")
    run.site.store.clear()
    run.folder.remove()
    return metrics


def tidy(folder: RunFolder, root: Path, out: Path) -> None:
    """Finishes what a kill between publication and the run's end left."""
    if folder.path.exists():
        with folder:
            file_record(root, folder.path, out)
    folder.clean_up()


@contextmanager
def progress_bar(console: Console, title: str):
    """A Rich bar in a terminal, nothing elsewhere; yields the function that moves it."""
    if not console.is_terminal:
        yield lambda done, total, what: None
        return
    columns = (TextColumn("{task.fields[title]}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console, transient=True) as progress:
        bar = progress.add_task("starting", total=None, title=title)
        yield lambda done, total, what: progress.update(bar, completed=done, total=total, description=what)
