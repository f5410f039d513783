"""One-by-one distillation: a student learns from one teacher after another, anchored to what it was.

    for each teacher j:   min over D_s   w_j tau^2 KL( p_j on S_j || p on S_j ) + mu tau^2 KL( p_anchor on A || p on A )

S_j are the classes that teacher j has met, A those that the student knows. Teachers are tables of logits on D_s: it
does not matter whether their owners sent these or their weights. [paper: one after another; the formula is ours]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from validation import Section

from .state import State
from .training import LocalData, cross_entropy, cuts, distillation

Weights = Literal["similarity", "uniform", "overlap"]
Order = Literal["similar_first", "similar_last", "random"]
SOFTNESS = 0.1  # of the soft-max that makes weights of similarities
LEAST = 0.05  # a teacher of less weight is skipped, where there are ten teachers or fewer


class DistillationParameters(Section):
    """`methods.large_small.distillation`: every visit to a teacher."""

    epochs: int = Field(1, ge=1, description="E_s, passes over the surrogate set for each teacher")
    learning_rate: float = Field(0.001, gt=0, description="step size of the server's Adam")
    batch_size: int = Field(32, ge=2, description="surrogate samples in a step")
    mu: float = Field(1.0, ge=0, description="weight of the anchor, what the student was before; 0 is none")
    temperature: float = Field(2.0, gt=0, description="tau, softens all predictions")
    weights: Weights = Field("similarity", description="of the teachers: similarity, uniform or overlap (of classes)")
    order: Order = Field("similar_first", description="of the teachers: similar_first, similar_last or random")


@dataclass(frozen=True)
class View:
    """What a client's model says about D_s.

    Args:
        logits: (samples, classes).
        classes: (classes,) bool, those that the client has met; the others' logits say nothing.
    """

    logits: Tensor
    classes: Tensor

    @property
    def index(self) -> list[int]:
        return self.classes.nonzero().flatten().tolist()

    def mean_probability(self) -> Tensor:
        """u: (classes,), the mean class probabilities on D_s; 0 for classes not met."""
        mean = torch.zeros_like(self.logits[0])
        mean[self.classes] = self.logits[:, self.classes].softmax(dim=1).mean(dim=0)
        return mean


@dataclass(frozen=True)
class Lesson(View):
    """A teacher's view, the weight of what it says, and for how many teachers it speaks."""

    weight: float = 1.0
    visits: int = 1


def similarities(student: View, teachers: Sequence[View], kind: Weights) -> Tensor:
    """(teachers,): how much alike student and teachers are. cos(u_i, u_j), or |C_i and C_j| / |C_i or C_j|."""
    if kind == "overlap":
        either = [(student.classes | each.classes).sum() for each in teachers]
        both = [(student.classes & each.classes).sum() for each in teachers]
        return torch.stack(both) / torch.stack(either).clamp(min=1)
    mean = student.mean_probability()
    return torch.stack([torch.cosine_similarity(mean, each.mean_probability(), dim=0) for each in teachers])


def lessons(
    student: View, teachers: Sequence[View], weights: Weights, order: Order, draw: torch.Generator
) -> list[Lesson]:
    """The teachers in their order, w_ij = softmax_j( similarity / 0.1 ), those below the bound left out. [ours]

    The bound is 0.05, or half of an equal share if that is less: of many teachers who are much alike, each has little.
    """
    if not teachers:
        return []
    alike = similarities(student, teachers, weights).double().cpu()
    share = torch.full_like(alike, 1 / len(alike)) if weights == "uniform" else (alike / SOFTNESS).softmax(dim=0)
    sequence = alike.argsort(descending=order == "similar_first", stable=True)
    if order == "random":
        sequence = torch.randperm(len(alike), generator=draw)
    least = min(LEAST, 0.5 / len(alike))
    return [
        Lesson(teachers[j].logits, teachers[j].classes, share[j].item()) for j in sequence.tolist() if share[j] >= least
    ]


def at_once(found: Sequence[Lesson]) -> list[Lesson]:
    """All lessons in one: the weighted mean of the logits of those teachers who have met a class. [field: FedDF]"""
    if not found:
        return []
    weight = torch.stack([each.weight * each.classes for each in found])[:, None, :]  # (teachers, 1, classes)
    total = weight.sum(dim=0).clamp(min=1e-12)
    mean = (torch.stack([each.logits for each in found]) * weight).sum(dim=0) / total
    return [Lesson(mean.float(), torch.stack([each.classes for each in found]).any(dim=0), 1.0, len(found))]


def heard(data: LocalData, lesson: Lesson, by_class: bool) -> Tensor:
    """Rows of D_s in a visit: all, or with `by_class` those of the teacher's classes; none rather than a single one.

    Batch normalisation cannot use a single sample.
    """
    rows = torch.arange(len(data))
    if by_class:
        rows = lesson.classes.to(data.labels.device)[data.labels].nonzero().flatten().cpu()
    return rows if len(rows) > 1 else rows[:0]


def learn(
    student: Callable[[Tensor], Tensor],
    learns: Sequence[nn.Parameter],
    data: LocalData,
    found: Sequence[Lesson],
    anchor: Callable[[], View],
    parameters: DistillationParameters,
    draw: torch.Generator,
    by_class: bool = False,
    labels: bool = False,
) -> None:
    """The student visits one teacher after another, in place; a teacher who is heard about no sample is passed over.

    One Adam makes all steps of a call. R2 is one call, whose moments go on from teacher to teacher; R1 is one call for
    each teacher, whose moments begin at 0.

    Args:
        student: rows of `data` -> logits (rows, classes), with gradients to `learns`.
        anchor: what the student is held to; asked before each teacher.
        by_class: the labels of D_s are known: a teacher is heard only about samples of its classes, see `heard`.
        labels: the student learns the labels of D_s too.
    """
    if not found:
        return
    adam = torch.optim.Adam(learns, lr=parameters.learning_rate, fused=True)
    tau = parameters.temperature
    for lesson in found:
        rows = heard(data, lesson, by_class)
        if not len(rows):
            continue
        before = anchor()
        known, taught = before.index, lesson.index
        for _ in range(lesson.visits * parameters.epochs):
            order = rows[torch.randperm(len(rows), generator=draw)].to(data.labels.device)
            for start, end in pairwise(cuts(len(rows), parameters.batch_size)):
                batch = order[start:end]
                logits = student(batch)
                loss = lesson.weight * distillation(logits, lesson.logits[batch], taught, tau)
                if parameters.mu and known:
                    loss = loss + parameters.mu * distillation(logits, before.logits[batch], known, tau)
                if labels:
                    loss = loss + cross_entropy(logits, data.labels[batch], sorted({*known, *taught}))
                adam.zero_grad()
                loss.backward()
                adam.step()


def pack(found: Sequence[Lesson]) -> dict[str, Tensor]:
    """Lessons as tensors by name, without their weights."""
    return {
        f"lessons.{n}.{key}": getattr(each, key).cpu() for n, each in enumerate(found) for key in ("logits", "classes")
    }


def unpack(packed: State, device: str) -> list[Lesson]:
    """The inverse of `pack`."""
    about = packed.values.get("lessons", [])
    tables = [packed.part(f"lessons.{n}") for n in range(len(about))]
    return [
        Lesson(table["logits"].to(device), table["classes"].to(device), *each)
        for table, each in zip(tables, about, strict=True)
    ]
