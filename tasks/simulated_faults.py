"""Clients that do not answer, or answer late, in simulation (`faults` of params.yaml).

Who drops out and who is slow is drawn for each client and round by name, whatever happened to others or before. A
client that drops out has received the broadcast and does nothing more in the round. A slow one takes `slow_factor`
times its simulated time. Past the deadline, in medians over the round's clients that answer, an upload is not admitted.
The centre, which holds all data in one place, is no client: nothing happens to it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch

from methods import CENTRE, Moment
from parameters import Experiment
from randomness import generator

from .training import Assignment, Trained

DROP, SLOW, LATE = "drop", "slow", "late"


def drawn(experiment: Experiment, client: int, moment: Moment) -> str:
    """`drop`, `slow` or nothing: what happens to a client in a round."""
    faults = experiment.faults
    if faults is None or client == CENTRE:
        return ""
    names = ("experience", moment.experience, "round", moment.round, "client", client)
    drop, slow = torch.rand(2, generator=generator(experiment.seed, "faults", *names), dtype=torch.float64).tolist()
    if drop < faults.drop:
        return DROP
    return SLOW if slow < faults.slow else ""


def answering(experiment: Experiment, assignments: Sequence[Assignment], moment: Moment) -> list[Assignment]:
    """The clients that do not drop out of the round."""
    return [each for each in assignments if drawn(experiment, each.client, moment) != DROP]


def with_faults(
    experiment: Experiment, assignments: Sequence[Assignment], trained: Sequence[Trained], moment: Moment
) -> list[Trained]:
    """The round's clients, those that dropped out among them, with what happened to each and its simulated time.

    `time` becomes how long the round waits for the client: at most until the deadline, and until then for one that
    drops out; without a deadline it is known at once who drops out. [ours] Methods without a cost model have no
    simulated time, so a client takes as long as its samples times the local epochs.
    """
    faults = experiment.faults
    if faults is None:
        return list(trained)
    found = {}
    for each in trained:
        fault = drawn(experiment, each.client, moment)
        time = each.time if experiment.devices else float(each.samples * experiment.train.local_epochs)
        found[each.client] = replace(each, time=time * (faults.slow_factor if fault == SLOW else 1), fault=fault)
    times = [each.time for each in found.values() if not each.error and each.client != CENTRE]
    limit = faults.deadline * statistics.median(times) if faults.deadline and times else None
    for client, each in found.items():
        if limit is not None and each.time > limit and not each.error and client != CENTRE:
            late = f"simulated: late, {each.time:g} of at most {limit:g} (faults.deadline)"
            found[client] = replace(each, time=limit, fault=LATE, excluded=late)
    for each in assignments:
        if each.client not in found:
            dropped = "simulated: no answer (faults.drop)"
            waited = 0.0 if limit is None else limit
            found[each.client] = Trained(each.client, each.broadcast, time=waited, fault=DROP, excluded=dropped)
    return [found[each.client] for each in assignments]
