"""The last step of clients, after all rounds: one task each, kept as soon as it is done."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed

from methods import Moment

from .limit import TimeLimit, Watch
from .patience import StoreFailed
from .round import round_row
from .run import Run
from .site import Site
from .training import Assignment, Trained, client_of, computed
from .upload import Verdict, open_round
from .workers import Workers


def finish_one(site: Site, assignment: Assignment) -> Trained:
    """A client's last step: what it received and kept, and what it keeps from now on."""
    started, number = time.perf_counter(), assignment.client
    try:
        own = max(each for each in range(site.stream.experiences) if len(site.rows(number, each)))
        # A round that none of its experience's has: what is drawn is the last step's own.
        client = client_of(site, Moment(own, site.experiment.train.rounds), assignment)
        update = site.method.finish(client)
        state = site.write(update.state)
    except StoreFailed:
        raise
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


def finish_all(site: Site, assignments: Sequence[Assignment], watch: Watch | None = None) -> list[Trained]:
    """The last step of clients; one that hangs ends the process."""
    finished = []
    for assignment in assignments:
        with watch.over(assignment.client) if watch else nullcontext():
            finished.append(finish_one(site, assignment))
    return finished


@task(name="finish", task_run_name="finish client {assignment.client}", cache_policy=NO_CACHE, log_prints=False)
def finish_client(workers: Workers, assignment: Assignment, limit: TimeLimit | None) -> Trained:
    """Prefect task: the last step of one client."""
    (finished,) = computed(workers, limit, [assignment], finish_all)
    return finished


def finish_clients(run: Run) -> None:
    """The last step of every client, on the data of the last experience in which it has any.

    Each is checkpointed as soon as it is done, so that a resumed run does what is left. A client that fails in all its
    tries stays as the last round left it, which is noted.
    """
    site, last = run.site, run.site.stream.experiences - 1
    if not site.method.finishes:
        return
    moment = Moment(last, site.rounds_in(last))
    left = [client for client in site.method.participants if client not in run.progress.finished]
    if not left:
        return
    opening = run.workers.call(open_round, run.progress.server, left, moment)
    assignments = [Assignment(each, opening.broadcasts[each], run.progress.clients.get(each)) for each in left]
    for attempt in range(run.experiment.run.retries + 1):
        final = attempt == run.experiment.run.retries
        futures = [finish_client.submit(run.workers, each, run.limit) for each in assignments]
        failed = set()
        for future in as_completed(futures):
            done = future.result()
            if done.error and not final:
                failed.add(done.client)
                continue
            if done.error:
                run.note(f"client {done.client} failed in its last step: {done.error}\n{done.trace}")
            else:
                run.progress.clients[done.client] = done.state
                run.written.add(done.state)
            run.progress.finished.append(done.client)
            verdict = Verdict(done.client, None, done.samples, admitted=not done.error, reason=done.error)
            run.folder.record("round", [round_row(moment, done, verdict)])
            run.record_tables(moment, done)
            run.save()
        assignments = [each for each in assignments if each.client in failed]
        if not assignments:
            return
