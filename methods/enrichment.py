"""Small models enhance the foundation model: psi learns from one client's small model after another (R1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.adapted import Adapted

from .assistance import Public
from .one_by_one import DistillationParameters, Lesson, View, heard, learn

BATCH = 256  # samples at a time where no gradients are needed


def enrich(
    adapted: Adapted,
    public: Public,
    teachers: Sequence[View],
    known: Tensor,
    parameters: DistillationParameters,
    labelled: bool,
    draw: torch.Generator,
) -> Tensor:
    """Trains psi in place; returns (classes,) bool, the classes it has been taught by now.

    For each client j, in an order drawn anew each time, with anchor = psi before this client:
        min_psi over D_s   tau^2 KL( p_theta_j on S_j || p_{F,psi} on S_j )
                           + mu tau^2 KL( p_{F,anchor} on S_seen || p_{F,psi} on S_seen ) [+ CE if D_s is labelled]
    S_j are the classes that client j has met, S_seen those that psi was taught. [ours] Each client has a fresh Adam.

    Args:
        known: S_seen so far, (classes,) bool.
        labelled: the labels of D_s are used.
    """
    data = public.data

    def student(rows: Tensor) -> Tensor:
        if adapted.frozen:
            return adapted.from_features(public.features[rows])
        return adapted(data.batch(rows).inputs)

    @torch.no_grad()
    def anchor() -> View:
        rows = torch.arange(len(data), device=data.labels.device)
        return View(torch.cat([student(part) for part in rows.split(BATCH)]), known)

    psi = list(adapted.psi().values())
    for place in torch.randperm(len(teachers), generator=draw).tolist():
        lesson = Lesson(teachers[place].logits, teachers[place].classes)
        learn(student, psi, data, [lesson], anchor, parameters, draw, by_class=labelled, labels=labelled)
        if len(heard(data, lesson, labelled)) and (labelled or lesson.classes.sum() > 1):  # of one class KL is 0
            known = known | lesson.classes
    return known
