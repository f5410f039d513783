"""One federated continual experiment as a Prefect flow: experiences, rounds, tasks.

It reads like the algorithm box; each name leads to one file in `tasks/`.
"""

from __future__ import annotations

from prefect import flow, runtime
from prefect.task_runners import ThreadPoolTaskRunner

from tasks.round import evaluate_all, play_round
from tasks.run import Run


@flow(name="experiment", flow_run_name="{title}", validate_parameters=False, retries=0)
def experiment(title: str, parameters: dict, run: Run) -> None:
    """Plays what is left of an experiment. `title` and `parameters` are what the Prefect UI shows of it."""
    run.flow_runs.append(str(runtime.flow_run.id))
    if not run.progress.evaluated:
        evaluate_all(run, trained=-1)
    for experience in run.experiences_left():
        learn.with_options(task_runner=ThreadPoolTaskRunner(run.workers.count))(experience, run)


@flow(name="experience", flow_run_name="experience {experience}", validate_parameters=False)
def learn(experience: int, run: Run) -> None:
    """The rounds of one experience, then its evaluation. Subflows group the rounds in the UI."""
    for moment in run.rounds_left(experience):
        play_round(run, moment)
    evaluate_all(run, trained=experience)
