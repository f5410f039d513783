"""What is minimised, task by task: the loss of each task in a batch and its share of it.

An ordinary stream asks one thing of all samples, which class they are of; where it asks several, a batch may hold
samples of several tasks:   L = sum_o share_o L_o,   share_o the share of the batch's samples that are of task o.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from models.multimodal import Fused, MultiModal
from multitask import Task

from .training import Batch, cross_entropy, distillation

CLASSIFY = "classify"  # the task of an ordinary stream


class Loss(NamedTuple):
    share: float  # of the batch's samples
    value: Tensor  # mean over these samples


def losses(
    model: nn.Module, batch: Batch, classes: Sequence[int], seen: dict[str, Fused] | None = None
) -> dict[str, Loss]:
    """Each task in the batch by its name: how much of it there is, and its loss.

    Classes: cross-entropy over `classes`, those of the task among them; images: mean squared error per pixel, pixels in
    [-1, 1]; texts: cross-entropy over the words of the answer, what comes after its end left out.

    Args:
        seen: what the fusion made of each task's samples is put here.
    """
    if not isinstance(model, MultiModal):
        return {CLASSIFY: Loss(1.0, cross_entropy(model(batch.inputs), batch.labels, classes))}
    found = {}
    for task, rows in model.groups(batch.inputs):
        records = batch.inputs[rows]
        fused = model.fuse(task, records)
        if seen is not None:
            seen[task.name] = fused
        value = _loss(model, task, model.head[task.name](fused), records, batch.labels[rows], classes)
        found[task.name] = Loss(len(rows) / len(batch.labels), value)
    return found


def _loss(
    model: MultiModal, task: Task, said: Tensor, records: Tensor, labels: Tensor, classes: Sequence[int]
) -> Tensor:
    if task.target == "class":
        return cross_entropy(said, labels - task.first, own_classes(task, classes))
    if task.target == "image":
        return F.mse_loss(said, model.shown(records, "image"))
    answer = records[:, model.layout.part("answer")].long()
    return F.cross_entropy(said.flatten(0, 1), answer.flatten(), ignore_index=0)


def own_classes(task: Task, classes: Sequence[int]) -> list[int]:
    """Those of `classes` that are the task's, numbered as its logits are."""
    return [label - task.first for label in classes if label in task.labels]


def plain(model: nn.Module, batch: Batch, classes: Sequence[int]) -> Tensor:
    """sum_o share_o L_o; in an ordinary stream the cross-entropy over `classes`."""
    return total(losses(model, batch, classes))


def total(each: dict[str, Loss]) -> Tensor:
    first, *others = (loss.value if loss.share == 1 else loss.share * loss.value for loss in each.values())
    return sum(others, start=first)


def matched(
    student: nn.Module, teacher: nn.Module, batch: Batch, classes: Sequence[int], rows_of_pixels: bool = False
) -> dict[str, Loss]:
    """How far the student's answers are from the teacher's, task by task.

    Classes: KL( softmax teacher || softmax student ) over `classes`; texts: the same over the vocabulary, mean over the
    words of the answer; images: mean squared difference.

    Args:
        rows_of_pixels: of images, the KL between the softmax of their rows of pixels instead, as TAP's released code.
    """
    if not isinstance(student, MultiModal):
        value = distillation(student(batch.inputs), teacher(batch.inputs), classes, 1.0)
        return {CLASSIFY: Loss(1.0, value)}
    found = {}
    for task, rows in student.groups(batch.inputs):
        records = batch.inputs[rows]
        ours, theirs = student.say(task, records), teacher.say(task, records).detach()
        if task.target == "class":
            value = distillation(ours, theirs, own_classes(task, classes), 1.0)
        elif task.target == "image" and not rows_of_pixels:
            value = F.mse_loss(ours, theirs)
        else:
            log_ours, log_theirs = F.log_softmax(ours, dim=-1), F.log_softmax(theirs, dim=-1)
            distance = F.kl_div(log_ours, log_theirs, reduction="none", log_target=True).sum(dim=-1)
            if task.target == "text":
                distance = distance[records[:, student.layout.part("answer")] > 0]
            value = distance.mean()
        found[task.name] = Loss(len(rows) / len(batch.labels), value)
    return found


def task_named(model: nn.Module, name: str) -> Task | None:
    """The task of that name; None for the one of an ordinary stream."""
    return model.known[name] if isinstance(model, MultiModal) else None
