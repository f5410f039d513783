"""One federated continual experiment as a Prefect flow: experiences, rounds, tasks.

It reads like the algorithm box; each name leads to one file in `tasks/`.
"""

from __future__ import annotations

from prefect import flow, runtime
from prefect.context import FlowRunContext
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.finishing import finish_clients
from tasks.round import evaluate_all, play_round
from tasks.run import Run

from .progress import shown_progress
from .tables import show_tables


# One flow, not one subflow per experience: a subflow waits for the server to have digested all task runs before it,
# measured 2.4 s each on 2 cores. The tasks' names say where they belong.
@flow(name="experiment", flow_run_name="{title}", validate_parameters=False)
def experiment(title: str, parameters: dict, run: Run) -> None:
    """Plays what is left of an experiment. `title` and `parameters` are what the Prefect UI shows of it."""
    run.flow_runs.append(str(runtime.flow_run.id))
    with shown_progress(run):
        if not run.progress.evaluated:
            evaluate_all(run, trained=-1)
        for experience in run.experiences_left():
            for moment in run.rounds_left(experience):
                play_round(run, moment)
            if experience == run.site.stream.experiences - 1:
                finish_clients(run)
            evaluate_all(run, trained=experience)
    show_tables(run)


def start(run: Run) -> None:
    """Plays `run` in the flow run that surrounds it, such as a deployment's, or in one of its own."""
    runner = ThreadPoolTaskRunner(max_workers=run.workers.count)
    about = run.experiment.title, run.experiment.identity(), run
    around = FlowRunContext.get()
    if around is None:
        experiment.with_options(task_runner=runner)(*about)
    else:  # as a subflow it would be shown as a second run of the same name
        with runner, around.model_copy(update={"task_runner": runner}):
            experiment.fn(*about)
