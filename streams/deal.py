"""Dealing: every sample of a source goes to a client and an experience, or to the public."""

from __future__ import annotations

import numpy as np

from randomness import numpy_generator
from streams.manifest import PUBLIC, SPLITS, TEST, TRAIN, Manifest
from streams.parameters import StreamParameters
from streams.partition import apportion, apportion_rows, shares
from streams.plan import Plan

NOBODY = -1
SMALLEST = 1e-300


def deal(
    labels: np.ndarray,
    is_test: np.ndarray | None,
    plan: Plan,
    parameters: StreamParameters,
    groups: np.ndarray | None = None,
    tasks: np.ndarray | None = None,
) -> Manifest:
    """The manifest: a row per sample, with `overlap` one for each experience of the client that holds the sample.

    The training and the test samples of a class are shared out alike, so that a client is tested on what it trains.

    Args:
        labels: (N,) int64.
        is_test: (N,) bool, or None to hold out `parameters.test` of every class.
        plan: from `scenario.plan`.
        groups: (N,) int64, the client of each sample; only for partition "natural".
        tasks: (classes,) int64, the task of each label; by default there is one.
    """
    split = _splits(labels, is_test, parameters)
    client = np.full(len(labels), NOBODY)
    experience = np.full(len(labels), NOBODY)
    for label in range(plan.classes):
        generator = numpy_generator(parameters.seed, "partition", "class", label)
        when = [plan.shares_of_time(label, training=part == TRAIN) for part in (TRAIN, TEST)]
        holders = np.flatnonzero(when[TRAIN].any(axis=1))
        share = None if groups is not None else shares(parameters, holders, generator)
        for part in (TRAIN, TEST):
            samples = generator.permutation(np.flatnonzero((labels == label) & (split == part)))
            if groups is None:
                cells = np.zeros((plan.clients, plan.experiences))
                cells[holders] = _over_experiences(share, when[part][holders], parameters)
                counts = np.zeros(plan.clients, np.int64)
                counts[holders] = apportion(len(samples), cells[holders].sum(axis=1), generator)
                owner = np.repeat(np.arange(plan.clients), counts)
            else:
                samples = samples[np.argsort(groups[samples], kind="stable")]
                owner = groups[samples]
                counts, cells = np.bincount(owner, minlength=plan.clients), when[part]
            client[samples] = owner
            dates = numpy_generator(parameters.seed, "partition", "experience", label, SPLITS[part])
            stay = np.tile(np.arange(plan.experiences), plan.clients)
            experience[samples] = np.repeat(stay, apportion_rows(counts, cells, dates).ravel())
    manifest = {"sample": np.arange(len(labels)), "client": client, "experience": experience}
    if parameters.overlap:
        manifest = _repeated(manifest, plan)
    sample, client, experience = manifest["sample"], manifest["client"], manifest["experience"]
    domain = np.where(client == NOBODY, 0, plan.domain_of(np.maximum(client, 0), np.maximum(experience, 0)))
    return {
        "sample": sample,
        "label": labels[sample],
        "task": np.zeros_like(sample) if tasks is None else tasks[labels[sample]],
        "client": client,
        "experience": experience,
        "split": split[sample],
        "domain": domain,
    }


def _over_experiences(share: np.ndarray, when: np.ndarray, parameters: StreamParameters) -> np.ndarray:
    """(h, experiences) float64 that sum to 1: how a class is shared out among its holders and over the experiences.

    Where all meet a class at the same times, an experience's part of it is shared out among those that are there.
    Otherwise every holder has its share of the class, in the experiences in which it is there.

    Args:
        share: (h,) of the holders, summing to 1.
        when: (h, experiences), from `Plan.shares_of_time`.
    """
    most, here = when.max(axis=0), when > 0
    # Once each and nobody missing: the shares are right as they are, to the last bit.
    together = ((when == most) | ~here).all() and (here.sum(axis=1) != 1).any()
    # A share that was drawn as 0 must still say how its holder's samples would lie.
    share = np.maximum(share, SMALLEST)
    if not together or parameters.overlap:
        sums = when.sum(axis=1, keepdims=True)
        return share[:, None] * np.divide(when, sums, out=np.zeros_like(when), where=sums > 0)
    there = share[:, None] * here
    sums = there.sum(axis=0)
    weights = most * np.divide(there, sums, out=np.zeros_like(there), where=sums > 0)
    return weights / weights.sum()


def _repeated(manifest: Manifest, plan: Plan) -> Manifest:
    """Every held sample in all experiences of its client, in the order of samples, then experiences."""
    held = manifest["client"] != NOBODY
    client = np.maximum(manifest["client"], 0)
    times = np.where(held, plan.last[client] - plan.first[client] + 1, 1)
    rows = np.repeat(np.arange(len(held)), times)
    since = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
    experience = np.where(held[rows], plan.first[client[rows]] + since, NOBODY)
    return {"sample": rows, "client": manifest["client"][rows], "experience": experience}


def _splits(labels: np.ndarray, is_test: np.ndarray | None, parameters: StreamParameters) -> np.ndarray:
    """(N,) places in SPLITS; test and public samples are taken from every class in proportion."""
    split = np.full(len(labels), TRAIN)

    def take(part: int, fraction: float) -> None:
        generator = numpy_generator(parameters.seed, "split", SPLITS[part])
        left = np.bincount(labels[split == TRAIN])
        total = round(fraction * left.sum())
        for label, count in enumerate(apportion(total, left / left.sum(), generator)):
            split[generator.permutation(np.flatnonzero((labels == label) & (split == TRAIN)))[:count]] = part

    if is_test is None:
        take(TEST, parameters.test)
    else:
        split[is_test] = TEST
    take(PUBLIC, parameters.public)
    return split
