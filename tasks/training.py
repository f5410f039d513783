"""Client training: one task trains a cohort of clients, each by itself, and uploads what they learned."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import nn

from methods import CENTRE, Moment
from methods.training import Client

from .evaluation import accuracy, judged
from .limit import TimeLimit, Watch
from .patience import StoreFailed
from .site import Site
from .store import Ref
from .upload import write_upload
from .workers import WorkerDied, Workers


@dataclass(frozen=True)
class Assignment:
    """What a client needs for a round: references to what it received and to what it kept."""

    client: int
    broadcast: Ref | None
    state: Ref | None


@dataclass(frozen=True)
class Trained:
    """What became of an assignment. `error` is empty, or why there is no result."""

    client: int
    broadcast: Ref | None
    upload: Ref | None = None
    state: Ref | None = None
    samples: int = 0
    steps: int = 0
    loss: float = float("nan")
    seconds: float = 0.0
    time: float = 0.0  # simulated, see `Update.time`
    accuracies: list[dict[str, Any]] = field(default_factory=list)  # of the model before fusion, see `before_fusion`
    curves: list[dict[str, Any]] = field(default_factory=list)  # what the method watched, see `Client.watch`
    tables: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)  # what the client decided, `Update.tables`
    error: str = ""
    trace: str = ""
    fault: str = ""  # what was simulated: drop, slow or late
    excluded: str = ""  # why it is left out in the simulation, although nothing failed


def train(
    site: Site, assignments: Sequence[Assignment], moment: Moment, last_round: bool, watch: Watch | None = None
) -> list[Trained]:
    """Trains each client of a cohort; one that fails does not touch the others, one that hangs ends the process."""
    trained = []
    for assignment in assignments:
        with watch.over(assignment.client) if watch else nullcontext():
            trained.append(_attempt(site, moment, assignment, last_round))
    return trained


def _attempt(site: Site, moment: Moment, assignment: Assignment, last_round: bool) -> Trained:
    try:
        return train_one(site, moment, assignment, last_round)
    except StoreFailed:  # not this client's failure: the others have no store either
        raise
    except Exception as error:  # whatever a method raises is this client's failure, reported with its trace
        reason = f"{type(error).__name__}: {error}"
        return Trained(assignment.client, assignment.broadcast, error=reason, trace=traceback.format_exc())


def train_one(site: Site, moment: Moment, assignment: Assignment, last_round: bool) -> Trained:
    """Reads what the client received and kept, trains, writes what it keeps and uploads."""
    started = time.perf_counter()
    number = assignment.client
    own = site.own(number, moment)
    curves: list[dict[str, Any]] = []

    def watch(training: str, epoch: int, model: nn.Module) -> None:
        test = site.test(number, own.experience)
        if len(test):
            correct = accuracy(model, test, site.classes(number, own.experience))
            place = {"client": number, "experience": own.experience, "round": own.round}
            curves.append({**place, "training": training, "epoch": epoch, "accuracy": correct, "samples": len(test)})

    client = replace(client_of(site, own, assignment), watch=watch)
    update = site.method.train(client)
    upload = None
    if update.message is not None:
        upload = write_upload(site, number, moment, update.message, len(client.data), assignment.broadcast)
    keeps = update.state.tensors or update.state.values
    return Trained(
        client=number,
        broadcast=assignment.broadcast,
        upload=upload,
        state=site.write(update.state) if keeps else None,
        samples=len(client.data),
        steps=update.steps,
        loss=update.loss,
        seconds=time.perf_counter() - started,
        time=update.time,
        accuracies=before_fusion(site, number, moment.experience, own.experience, update.model) if last_round else [],
        curves=curves,
        tables={name: list(rows) for name, rows in update.tables.items()},
    )


def client_of(site: Site, own: Moment, assignment: Assignment) -> Client:
    """All that a method may know of a client, at the client's own moment."""
    number = assignment.client
    return Client(
        id=number,
        moment=own,
        seed=site.experiment.seed,
        data=site.data(number, own.experience),
        classes=site.classes(number, own.experience),
        earlier=site.earlier(number, own.experience),
        task_aware=site.stream.task_aware,
        state=site.read(assignment.state) if assignment.state else site.method.start_client(number),
        received=site.read(assignment.broadcast) if assignment.broadcast else None,
    )


def before_fusion(site: Site, client: int, experience: int, own: int, model) -> list[dict[str, Any]]:
    """Accuracy of a client's own model on its own test data, measured where the data are: rows of kind `trained`.

    Args:
        experience: the federation's; `own`: the client's, which may lag behind.
    """
    if client == CENTRE:
        return []
    rows = []
    for tested in range(own + 1):
        data = site.test(client, tested)
        if len(data):
            row = judged(model, data, site.candidates(client, own, tested)).row()
            if row:
                rows.append({"model": "trained", "client": client, "trained": experience, "tested": tested, **row})
    return rows


@task(
    name="train",
    task_run_name="train {who} round {moment.round} of experience {moment.experience}",
    cache_policy=NO_CACHE,
    log_prints=False,
)
def train_clients(
    workers: Workers,
    moment: Moment,
    assignments: Sequence[Assignment],
    last_round: bool,
    who: str,
    limit: TimeLimit | None = None,
) -> list[Trained]:
    """Prefect task: client training and the client's side of the upload for one cohort."""
    return computed(workers, limit, assignments, train, moment, last_round)


def computed(
    workers: Workers, limit: TimeLimit | None, assignments: Sequence[Assignment], function: Callable, *arguments: Any
) -> list[Trained]:
    """`function(site, assignments, *arguments)` in a worker; clients whose process ended, or who hung, have failed."""

    def failed(assignment: Assignment, reason: str, trace: str) -> Trained:
        return Trained(assignment.client, assignment.broadcast, error=reason, trace=trace)

    if limit:
        return limit.compute(workers, assignments, function, *arguments, failed=failed)
    try:
        return workers.call(function, assignments, *arguments)
    except WorkerDied as error:
        return [failed(each, str(error), "") for each in assignments]
