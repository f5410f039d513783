"""The last step of clients, after all rounds: one task each, kept as soon as it is done."""

from __future__ import annotations

import time
import traceback

from prefect import task
from prefect.cache_policies import NO_CACHE

from methods import Moment

from .round import round_row
from .run import Run
from .site import Site
from .training import Assignment, Trained, client_of
from .upload import Verdict, open_round
from .workers import WorkerDied, Workers


def finish_one(site: Site, moment: Moment, assignment: Assignment) -> Trained:
    """A client's last step: what it received and kept, and what it keeps from now on."""
    started, number = time.perf_counter(), assignment.client
    try:
        client = client_of(site, moment, assignment)
        update = site.method.finish(client)
        state = site.write(update.state)
    except Exception as error:  # this client's failure, reported with its trace
        reason = f"{type(error).__name__}: {error}"
        return Trained(number, assignment.broadcast, error=reason, trace=traceback.format_exc())
    return Trained(
        client=number,
        broadcast=assignment.broadcast,
        state=state,
        samples=len(client.data),
        steps=update.steps,
        loss=update.loss,
        seconds=time.perf_counter() - started,
        time=update.time,
        tables={name: list(rows) for name, rows in update.tables.items()},
    )


@task(name="finish", task_run_name="finish client {assignment.client}", cache_policy=NO_CACHE, log_prints=False)
def finish_client(workers: Workers, moment: Moment, assignment: Assignment) -> Trained:
    """Prefect task: the last step of one client."""
    try:
        return workers.call(finish_one, moment, assignment)
    except WorkerDied as error:
        return Trained(assignment.client, assignment.broadcast, error=str(error))


def finish_clients(run: Run) -> None:
    """The last step of every client that has data in the last experience; what a killed run had done is kept.

    A client that fails in all its tries stays as the last round left it, which is noted.
    """
    site, last = run.site, run.site.stream.experiences - 1
    if not site.method.finishes:
        return
    moment = Moment(last, site.rounds_in(last))
    able = [client for client in site.method.participants if len(site.rows(client, last))]
    left = [client for client in able if client not in run.progress.finished]
    if not left:
        return
    opening = run.workers.call(open_round, run.progress.server, left, moment)
    assignments = [Assignment(each, opening.broadcasts[each], run.progress.clients.get(each)) for each in left]
    for attempt in range(run.experiment.run.retries + 1):
        final = attempt == run.experiment.run.retries
        futures = [finish_client.submit(run.workers, moment, each) for each in assignments]
        failed = []
        for future, assignment in zip(futures, assignments, strict=True):
            done = future.result()
            if done.error and not final:
                failed.append(assignment)
                continue
            if done.error:
                run.note(f"client {done.client} failed in its last step: {done.error}\n{done.trace}")
            else:
                run.progress.clients[done.client] = done.state
            run.progress.finished.append(done.client)
            verdict = Verdict(done.client, None, done.samples, admitted=not done.error, reason=done.error)
            run.folder.record("round", [round_row(moment, done, verdict)])
            run.record_tables(moment, done)
            run.folder.save(run.progress)
        assignments = failed
        if not assignments:
            return
