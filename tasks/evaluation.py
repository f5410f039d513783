"""Evaluation: rows of the accuracy matrix.

Predictions are restricted to the classes met up to the later of "trained" and "tested" [ours]: an experience that is
still to come is tested over the classes the model will know by then, so that zero-shot rows compare like with like.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import nn

from methods import CENTRE, Moment
from methods.objectives import own_classes
from methods.pretraining import general_accuracy
from methods.training import LocalData
from models.multimodal import MultiModal
from multitask import Task

from .answers import answers, as_accuracy, by_task
from .site import Site
from .store import Ref
from .workers import Workers

BATCH = 512  # test images at a time; no gradients, so memory is no concern below thousands


class Unit(NamedTuple):
    """The smallest piece of an evaluation: one model of one holder (client, or -1) on one experience."""

    kind: str
    client: int
    tested: int


class Judged(NamedTuple):
    """What a model does on test samples."""

    right: np.ndarray  # (samples,) float64: 1 or 0; of texts the share of right words, of images NaN
    answers: Mapping[str, np.ndarray] = {}  # where there are several tasks: their measures, sample by sample
    known: Sequence[Task] = ()  # these tasks, as `answers` numbers them

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """Each task's measures."""
        return list(by_task(self.known, self.answers)) if self.known else []

    def at(self, places: np.ndarray) -> Judged:
        """Of some of the samples."""
        return Judged(self.right[places], {name: each[places] for name, each in self.answers.items()}, self.known)

    def row(self) -> dict[str, Any] | None:
        """accuracy and samples of a row of the accuracy matrix; None where no sample has an accuracy."""
        known = ~np.isnan(self.right)
        return {"accuracy": float(self.right[known].mean()), "samples": int(known.sum())} if known.any() else None


class Measured(NamedTuple):
    """What an evaluation gives."""

    accuracy: list[dict[str, Any]]  # rows of the accuracy matrix
    tasks: list[dict[str, Any]]  # rows of the task measures


@torch.no_grad()
def judged(model: nn.Module, data: LocalData, classes: Sequence[int]) -> Judged:
    """Predictions among `classes`, sample by sample."""
    if isinstance(model, MultiModal):
        found = answers(model, data, classes)
        return Judged(as_accuracy(found), found, model.layout.tasks)
    model.eval()
    index = torch.as_tensor(classes, device=data.labels.device)
    said = torch.cat([index[model(batch.inputs)[:, index].argmax(1)] for batch in data.batches(BATCH)])
    return Judged((said == data.labels).double().cpu().numpy())


def accuracy(model: nn.Module, data: LocalData, classes: Sequence[int]) -> float:
    """Fraction of correct predictions among `classes`; NaN where no sample has an accuracy."""
    row = judged(model, data, classes).row()
    return row["accuracy"] if row else float("nan")


def units(site: Site) -> list[Unit]:
    """All that is evaluated after an experience."""
    method, experiences = site.method, range(site.stream.experiences)
    holders = {"server": (CENTRE,), "client": method.participants}
    kinds = method.evaluates.items()
    return [Unit(kind, client, tested) for kind, scope in kinds for client in holders[scope] for tested in experiences]


def evaluate(site: Site, server: Ref, clients: Mapping[int, Ref], trained: int, work: Sequence[Unit]) -> Measured:
    """Accuracies after experience `trained` (-1: before any training).

    A model that the server holds is tested on everyone's test data; the same predictions, split by client, say how
    what each client receives does on the client's own data (rows of kind `received`). Where there are several tasks,
    each is measured at the clients that have it, whoever holds the model.
    """
    found = Measured([], [])
    models: dict[tuple[str, int], nn.Module] = {}
    # What clients receive is the first kind that the server holds.
    sent = next((kind for kind, scope in site.method.evaluates.items() if scope == "server"), None)
    for kind, client, tested in work:
        data = site.test(client, tested)
        if not len(data):
            continue
        if (kind, client) not in models:
            models.clear()  # one model in memory, however many clients
            held = clients.get(client)
            state = site.read(held) if held else site.method.start_client(client)
            models[kind, client] = site.method.predictor(kind, site.read(server), state, client)
        model = models[kind, client]
        point = {"trained": trained, "tested": tested}
        candidates = site.candidates(client, trained, tested, told=kind in site.method.told)
        result = judged(model, data, candidates)
        _add(found, kind, client, point, result)
        received = kind == sent
        if received or (client == CENTRE and result.known):
            for each, own in _at_clients(site, model, result, point):
                if received:
                    _add(found, "received", each, point, Judged(own.right))
                _add(found, kind, each, point, own._replace(right=np.array([])))
    return found


def _add(found: Measured, kind: str, client: int, point: dict[str, int], result: Judged) -> None:
    row, about = result.row(), {"model": kind, "client": client, **point}
    if row:
        found.accuracy.append({**about, **row})
    found.tasks.extend({**about, **each} for each in result.tasks)


def _at_clients(
    site: Site, model: nn.Module, everywhere: Judged, point: dict[str, int]
) -> Iterator[tuple[int, Judged]]:
    """What the model does on the test data of each client that has some in the experience."""
    stream, tested = site.stream, point["tested"]
    everyone, everyones = stream.test(None, tested), site.candidates(CENTRE, point["trained"], tested)
    for client in range(stream.clients):
        own = stream.test(client, tested)
        if not len(own):
            continue
        candidates = site.candidates(client, point["trained"], tested)
        result = everywhere.at(everyone.searchsorted(own))
        yield client, result if _alike(candidates, everyones, result) else judged(model, site.load(own), candidates)


def _alike(one: Sequence[int], other: Sequence[int], result: Judged) -> bool:
    """Whether these samples are predicted among the same classes: of several tasks, each among its own."""
    if not result.known:
        return one == other
    tasks = (result.known[number] for number in np.unique(result.answers["task"]))
    return all(own_classes(task, one) == own_classes(task, other) for task in tasks if task.target == "class")


def course(site: Site, moment: Moment, server: Ref) -> list[dict[str, Any]]:
    """Accuracy of the server's main model on everyone's test data of each experience so far, after a round.

    Nothing where the clients hold the main model. After an experience's last round it is what `evaluate` says.
    """
    method, experience = site.method, moment.experience
    kind, scope = next(iter(method.evaluates.items()))
    if scope != "server":
        return []
    model, rows = method.predictor(kind, site.read(server), method.start_client(CENTRE), CENTRE), []
    for tested in range(experience + 1):
        data = site.test(CENTRE, tested)
        if len(data):
            candidates = site.candidates(CENTRE, experience, tested, told=kind in method.told)
            row = judged(model, data, candidates).row()
            if row:
                rows.append({"experience": experience, "round": moment.round, "tested": tested, **row})
    return rows


def evaluate_general(site: Site, server: Ref, trained: int) -> list[dict[str, Any]]:
    """Accuracy in each general task of the foundation model after experience `trained` (-1: before any training)."""
    rows = []
    for name, model in site.method.general(site.read(server)).items():
        correct = general_accuracy(model, site.every_test, site.general[name])
        rows.append({"task": name, "trained": trained, "accuracy": correct, "samples": len(site.every_test)})
    return rows


@task(name="evaluate", task_run_name="evaluate {what} after {when}", cache_policy=NO_CACHE, log_prints=False)
def evaluate_models(
    workers: Workers, server: Ref, clients: Mapping[int, Ref], trained: int, work: Sequence[Unit], what: str, when: str
) -> Measured:
    """Prefect task: a part of the evaluation after an experience."""
    return workers.call(evaluate, server, clients, trained, work)


@task(name="evaluate", task_run_name="evaluate general tasks after {when}", cache_policy=NO_CACHE, log_prints=False)
def evaluate_foundation(workers: Workers, server: Ref, trained: int, when: str) -> list[dict[str, Any]]:
    """Prefect task: how well the server's model still does the foundation model's general tasks."""
    return workers.call(evaluate_general, server, trained)


@task(
    name="evaluate",
    task_run_name="evaluate the course after round {moment.round} of experience {moment.experience}",
    cache_policy=NO_CACHE,
    log_prints=False,
)
def evaluate_course(workers: Workers, moment: Moment, server: Ref) -> list[dict[str, Any]]:
    """Prefect task: how good the server's main model is after a round."""
    return workers.call(course, moment, server)
