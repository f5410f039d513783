"""What a network of several tasks says to test samples, measured sample by sample in each task's own measures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from methods.objectives import own_classes
from methods.training import LocalData
from metrics.sentences import meteor
from models.multimodal import MultiModal
from multitask import Task

BATCH = 512  # records at a time; no gradients
MEASURES = {"class": ("accuracy",), "image": ("mse",), "text": ("token_accuracy", "meteor")}  # by a task's target
IN_ACCURACY = ("accuracy", "token_accuracy")  # measures that count as a sample's accuracy in the accuracy matrix


@torch.no_grad()
def answers(model: MultiModal, data: LocalData, classes: Sequence[int]) -> dict[str, np.ndarray]:
    """Measures (samples,) float64 by name, NaN where a sample's task has another; `task` is its place.

    accuracy: 1 if the class is right among `classes`; mse: mean squared error per pixel, pixels in [-1, 1];
    token_accuracy: share of the answer's words said in their places; meteor: of as many words as the answer has
    [ours: a network learns words, not where a sentence ends, since what comes after the end is left out of the loss].
    """
    model.eval()
    names = sorted({name for several in MEASURES.values() for name in several})
    found = {name: np.full(len(data), np.nan) for name in names}
    found["task"] = data.inputs[:, 0].cpu().numpy().astype(np.int64)
    for batch in data.batches(BATCH):
        for task, rows in model.groups(batch.inputs):
            records, places = batch.inputs[rows], batch.rows[rows].cpu().numpy()
            said = model.say(task, records)
            if task.target == "class":
                among = torch.as_tensor(own_classes(task, classes), device=said.device)
                right = among[said[:, among].argmax(1)] + task.first == batch.labels[rows]
                found["accuracy"][places] = right.double().cpu().numpy()
            elif task.target == "image":
                error = (said - model.shown(records, "image")).square().flatten(1).double().mean(dim=1)
                found["mse"][places] = error.cpu().numpy()
            else:
                wanted = records[:, model.layout.part("answer")].long()
                words = torch.where(wanted > 0, said.argmax(dim=2), 0)
                right = ((words == wanted) & (wanted > 0)).sum(dim=1) / (wanted > 0).sum(dim=1).clamp(min=1)
                found["token_accuracy"][places] = right.double().cpu().numpy()
                sentence = model.layout.sentence
                pairs = zip(words.tolist(), wanted.tolist(), strict=True)
                found["meteor"][places] = [meteor(spoken(one, sentence), sentence(other)) for one, other in pairs]
    return found


def spoken(numbers: Sequence[int], sentence) -> str:
    """The words of an answer, left out where the network said none."""
    return sentence([number for number in numbers if number])


def as_accuracy(found: Mapping[str, np.ndarray]) -> np.ndarray:
    """(samples,) what counts in the accuracy matrix: classes and words; NaN for images."""
    one, other = (found[name] for name in IN_ACCURACY)
    return np.where(np.isnan(one), other, one)


def by_task(tasks: Sequence[Task], found: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """One row per task and measure: its mean over the samples of the task."""
    for number in np.unique(found["task"]).tolist():
        task = tasks[number]
        own = found["task"] == number
        for name in MEASURES[task.target]:
            yield {
                "task": task.name,
                "measure": name,
                "value": float(found[name][own].mean()),
                "samples": int(own.sum()),
            }
