"""A communication round: broadcast, client training, upload, admission, fusion; then a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from methods import Moment
from randomness import generator

from .evaluation import evaluate_course, evaluate_foundation, evaluate_models, units
from .fusion import Job, finish, fuse_all, fuse_parts, join
from .run import Run
from .simulated_faults import answering, with_faults
from .store import Ref
from .training import Assignment, Trained, train_clients
from .upload import Claim, Verdict, admit_uploads, open_round

# A Prefect task costs about 5 ms here and 25 ms at the server (measured on 2 cores). A cohort that computes for half a
# second keeps that near 5 %.
COHORT_SECONDS = 0.5


class RoundFailed(RuntimeError):
    """Fewer uploads were admitted than `run.min_clients`; the run can be resumed from the round before."""


def play_round(run: Run, moment: Moment) -> None:
    """One round, from the server's state to its next; only what is admitted counts."""
    last = moment.round == run.site.rounds_in(moment.experience) - 1
    clients = sample_clients(run, moment)
    opening = run.workers.call(open_round, run.progress.server, clients, moment)
    kept = run.progress.clients
    assignments = [Assignment(client, opening.broadcasts[client], kept.get(client)) for client in clients]
    answers = train_all(run, moment, answering(run.experiment, assignments, moment), last)
    trained = with_faults(run.experiment, assignments, answers, moment)
    verdicts = admit_all(run, moment, opening.server, trained)
    admitted = [verdict for verdict in verdicts if verdict.admitted]
    if clients and len(admitted) < min(run.experiment.run.min_clients, len(clients)):
        reasons = "; ".join(sorted({verdict.reason for verdict in verdicts if verdict.reason}))
        raise RoundFailed(
            f"experience {moment.experience}, round {moment.round}: {len(admitted)} of {len(clients)} clients were "
            f"admitted, run.min_clients is {run.experiment.run.min_clients} ({reasons})"
        )
    server = fuse_round(run, moment, opening.server, verdicts, last)
    for name, decided in opening.tables.items():
        run.folder.record(f"table:{name}", decided)
    course = evaluate_course.submit(run.workers, moment, server).result() if run.experiment.run.course else []
    record_round(run, moment, trained, verdicts, server, course)


def sample_clients(run: Run, moment: Moment) -> list[int]:
    """The round's clients, drawn without replacement from those that have data in the experience; sorted."""
    site, wanted = run.site, run.experiment.train.clients_per_round
    able = [client for client in site.method.participants if site.able(client, moment)]
    if wanted == "all" or wanted >= len(able):
        return able
    draw = generator(run.experiment.seed, "experience", moment.experience, "round", moment.round, "clients")
    return sorted(able[place] for place in torch.randperm(len(able), generator=draw)[:wanted].tolist())


def train_all(run: Run, moment: Moment, assignments: Sequence[Assignment], last: bool) -> list[Trained]:
    """Client training in cohorts; a client that fails is tried again alone, then left out of the round."""
    futures = [
        train_clients.submit(run.workers, moment, cohort, last, who(cohort), run.limit)
        for cohort in cohorts(run, assignments)
    ]
    results = {each.client: each for future in futures for each in future.result()}
    for attempt in range(run.experiment.run.retries):
        failed = [each for each in assignments if results[each.client].error]
        futures = [
            train_clients.submit(run.workers, moment, [each], last, f"{who([each])} (attempt {attempt + 2})", run.limit)
            for each in failed
        ]
        results |= {each.client: each for future in futures for each in future.result()}
    for each in results.values():
        if each.error:
            run.note(f"client {each.client} failed in {moment}: {each.error}\n{each.trace}")
    trained = [results[each.client] for each in assignments]
    run.observe([each.seconds / each.samples for each in trained if each.samples])
    return trained


def cohorts(run: Run, assignments: Sequence[Assignment]) -> list[list[Assignment]]:
    """Splits a round's clients over tasks: at least one a worker, small clients together, loads balanced.

    How clients are grouped changes nothing but the time.
    """
    if not assignments:
        return []
    site = run.site
    where = {each.client: site.own(each.client, run.progress.next).experience for each in assignments}
    load = {client: len(site.rows(client, experience)) for client, experience in where.items()}
    size = run.experiment.run.cohort
    if size == "auto":
        mean = run.seconds_per_sample * sum(load.values()) / len(load)
        size = math.ceil(COHORT_SECONDS / mean) if mean else len(assignments)
        size = min(size, math.ceil(len(assignments) / run.workers.count))
    groups: list[list[Assignment]] = [[] for _ in range(math.ceil(len(assignments) / size))]
    for each in sorted(assignments, key=lambda each: (-load[each.client], each.client)):
        min(groups, key=lambda group: sum(load[other.client] for other in group)).append(each)
    return [sorted(group, key=lambda each: each.client) for group in groups if group]


def who(cohort: Sequence[Assignment]) -> str:
    numbers = [each.client for each in cohort]
    if numbers == [-1]:
        return "the centre"
    if len(numbers) == 1:
        return f"client {numbers[0]}"
    return f"clients {', '.join(map(str, numbers[:8]))}{f' and {len(numbers) - 8} more' if len(numbers) > 8 else ''}"


def admit_all(run: Run, moment: Moment, server: Ref, trained: Sequence[Trained]) -> list[Verdict]:
    """The server's verdict on every client of the round; a client that sends nothing by design is admitted.

    A simulated fault is no refusal: what is late is not looked at.
    """
    claims = [
        Claim(each.client, each.upload, each.broadcast.digest if each.broadcast else None)
        for each in trained
        if each.upload and not each.excluded
    ]
    verdicts = {}
    if claims:
        judged = admit_uploads.submit(run.workers, server, moment, claims).result()
        verdicts = {verdict.client: verdict for verdict in judged}
    for each in trained:
        if each.excluded:
            verdicts[each.client] = Verdict(each.client, None, 0, admitted=False, reason=each.excluded)
        elif each.error:
            verdicts[each.client] = Verdict(each.client, None, 0, admitted=False, reason=f"failed: {each.error}")
        elif not each.upload:
            verdicts[each.client] = Verdict(each.client, None, each.samples, admitted=True)
    return [verdicts[each.client] for each in trained]


def fuse_round(run: Run, moment: Moment, server: Ref, verdicts: Sequence[Verdict], last: bool) -> Ref:
    """The next server state: one task for a fusion of one job, else one task a job and one that joins them."""
    every = run.experiment.run.save_every
    files = [verdict for verdict in verdicts if verdict.admitted and verdict.file]
    if not files and not last:
        return server
    names = run.site.method.fusion_jobs([verdict.client for verdict in files], moment) if files else ()
    if len(names) <= 1:
        what = "fuse uploads" if names in ((), ("all",)) else f"fuse {names[0]}"
        return finish([Job(run, what, moment, fuse_all, server, files, moment, last, every)])[0]
    parts = fuse_parts(run, names, server, files, moment)
    return finish([Job(run, f"join {len(parts)} parts", moment, join, server, parts, moment, last)])[0]


def record_round(
    run: Run,
    moment: Moment,
    trained: Sequence[Trained],
    verdicts: Sequence[Verdict],
    server: Ref,
    course: Sequence[dict[str, Any]],
) -> None:
    """Writes the round into the journal, moves the run's progress on, and drops the files it no longer needs."""
    rows = []
    for each, verdict in zip(trained, verdicts, strict=True):
        rows.append(round_row(moment, each, verdict))
        run.record_tables(moment, each)
        if verdict.admitted and each.state:
            run.progress.clients[each.client] = each.state
        elif verdict.admitted:  # the method keeps nothing, or nothing any more
            run.progress.clients.pop(each.client, None)
    run.written.update(each.state for each in trained if each.state)
    run.folder.record("round", rows)
    run.folder.record("accuracy", [row for each in trained for row in each.accuracies])
    run.folder.record("curve", [row for each in trained for row in each.curves])
    run.folder.record("course", course)
    run.progress.server = server
    run.advance(Moment(moment.experience, moment.round + 1))


def round_row(moment: Moment, each: Trained, verdict: Verdict) -> dict[str, Any]:
    """What is recorded of one client in one round."""
    return {
        "experience": moment.experience,
        "round": moment.round,
        "client": each.client,
        "samples": each.samples,
        "steps": each.steps,
        "loss": each.loss if each.samples else None,
        "bytes_up": each.upload.size if each.upload else 0,
        "bytes_down": each.broadcast.size if each.broadcast else 0,
        "seconds": each.seconds,
        "simulated": each.time,
        "admitted": verdict.admitted,
        "reason": verdict.reason,
        "fault": each.fault,
    }


def evaluate_all(run: Run, trained: int) -> None:
    """Every kind of model on every experience, split over the workers; rows do not depend on the split."""
    work = units(run.site)
    count = min(run.workers.count, len(work))
    when = "no training" if trained < 0 else f"experience {trained}"
    futures = []
    for part in range(count):
        share = work[part * len(work) // count : (part + 1) * len(work) // count]
        clients = {
            unit.client: run.progress.clients[unit.client] for unit in share if unit.client in run.progress.clients
        }
        what = f"part {part + 1} of {count}" if count > 1 else "all models"
        futures.append(evaluate_models.submit(run.workers, run.progress.server, clients, trained, share, what, when))
    if run.experiment.foundation:
        general = evaluate_foundation.submit(run.workers, run.progress.server, trained, when)
        run.folder.record("general", general.result())
    found = [future.result() for future in futures]
    run.folder.record("accuracy", [row for each in found for row in each.accuracy])
    run.folder.record("task", [row for each in found for row in each.tasks])
    if trained < 0:
        run.progress.evaluated = True
        run.advance(Moment(0, 0))
    else:
        run.advance(Moment(trained + 1, 0))
