"""Making a foundation model: pre-training on public data, and heads for general tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import SeveralTasks
from models.foundation import Backbone, Foundation, Pretraining
from models.initial import initialise
from randomness import generator

from .augmentation import Augmentation
from .objectives import plain
from .training import LocalData, cuts

BATCH = 256  # samples at a time where no gradients are needed


def pretrain(
    backbone: Backbone, data: LocalData, general: Mapping[str, Tensor], parameters: Pretraining, seed: int
) -> Foundation:
    """A foundation model from scratch, in place: it learns general tasks, and what its images look like.

        min  sum_g CE( W_g h(x), y_g ) + reconstruction * mean ( W h(x) - x )^2         over the public split

    Labels of the stream's own classes are never looked at. The reconstruction keeps in the features what the general
    tasks do not ask for: without it images of one general class end in one place. [ours] [checked] digits, 288 public
    images: nearest class mean over ten classes, which were not learnt, 0.69 without and 0.87 with it.

    Args:
        data: public samples, with whatever labels.
        general: labels (samples,) int64 of each general task; at least one, or a reconstruction of images.
    """
    counts = {task: int(labels.max()) + 1 for task, labels in general.items()}
    foundation = Foundation(backbone, counts)
    with torch.device("meta"):
        fresh = Foundation(backbone, counts).general
        back = nn.Linear(backbone.width, data.inputs[0].numel())
    draw = generator(seed, "foundation", "heads")
    foundation.general = initialise(fresh, draw).to(data.labels.device)
    back = initialise(back, draw).to(data.labels.device)
    heads = [*foundation.general.parameters(), *back.parameters()]
    reconstruct = parameters.reconstruction if backbone.modality == "image" else 0.0
    learns = [parameter.requires_grad_() for parameter in (*backbone.parameters(), *heads)]
    adamw = torch.optim.AdamW(learns, lr=parameters.learning_rate, weight_decay=parameters.weight_decay, fused=True)
    steps = parameters.epochs * -(-len(data) // parameters.batch_size)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, steps)
    for inputs, rows in _batches(data, parameters, seed):
        features = backbone(inputs)
        loss = sum(
            F.cross_entropy(foundation.general[task](features), labels[rows]) for task, labels in general.items()
        )
        if reconstruct:
            loss = loss + reconstruct * F.mse_loss(back(features), inputs.flatten(1))
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        annealing.step()
    foundation.requires_grad_(False)
    return foundation


def pretrain_tasks(backbone: SeveralTasks, data: LocalData, parameters: Pretraining, seed: int) -> Foundation:
    """A network of several tasks from scratch, in place: it learns all of them.

        min  sum_o share_o L_o        over the public records

    Args:
        data: public samples of every task, with their labels.
    """
    foundation = Foundation(backbone, {})
    network = backbone.network.requires_grad_(True).train()
    weights = list(network.parameters())
    adamw = torch.optim.AdamW(weights, lr=parameters.learning_rate, weight_decay=parameters.weight_decay, fused=True)
    steps = parameters.epochs * (len(cuts(len(data), parameters.batch_size)) - 1)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, steps)
    classes = range(network.layout.classes)
    for batch in data.shuffled(parameters.batch_size, parameters.epochs, generator(seed, "foundation", "batches")):
        loss = plain(network, batch, classes)
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        annealing.step()
    foundation.requires_grad_(False)
    return foundation.eval()


def _batches(data: LocalData, parameters: Pretraining, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(inputs, rows) of each step."""
    order, views = (generator(seed, "foundation", name) for name in ("batches", "augmentation"))
    augmentation = Augmentation(crop=parameters.crop, flip=parameters.flip)
    for _ in range(parameters.epochs):
        for rows in torch.randperm(len(data), generator=order).split(parameters.batch_size):
            rows = rows.to(data.labels.device)
            inputs = data.batch(rows).inputs
            images = inputs.dim() == 4 and augmentation.active
            yield augmentation.apply(inputs, views) if images else inputs, rows


def with_heads(backbone: Backbone, data: LocalData, general: Mapping[str, Tensor], steps: int, seed: int) -> Foundation:
    """A released backbone with a linear head for each general task, fitted to its frozen features. [field: probing]

    The backbone stays as it is. Full-batch steps of Adam on standardised features; the standardisation is folded into
    the head.
    """
    counts = {task: int(labels.max()) + 1 for task, labels in general.items()}
    foundation = Foundation(backbone, counts)
    if not counts:
        return foundation
    features = all_features(foundation, data)
    mean, scale = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    standard = (features - mean) / scale
    for task, labels in general.items():
        with torch.device("meta"):
            head = nn.Linear(backbone.width, counts[task])
        head = initialise(head, generator(seed, "foundation", "probe", task)).to(features.device)
        adam = torch.optim.Adam(head.parameters(), lr=0.01, weight_decay=1e-4, fused=True)
        for _ in range(steps):
            adam.zero_grad()
            F.cross_entropy(head(standard), labels).backward()
            adam.step()
        own = foundation.general[task]
        with torch.no_grad():
            own.weight.copy_(head.weight / scale)
            own.bias.copy_(head.bias - own.weight @ mean)
    return foundation


@torch.no_grad()
def all_features(foundation: Foundation, data: LocalData) -> Tensor:
    """h_F of all samples, (samples, width) float32."""
    if not len(data):
        return torch.zeros(0, foundation.width, device=data.labels.device)
    return torch.cat([foundation.features(batch.inputs) for batch in data.batches(BATCH)])


@torch.no_grad()
def general_accuracy(predict: nn.Module, data: LocalData, labels: Tensor) -> float:
    """Fraction of the samples whose general label `predict` (inputs -> logits) gives."""
    hits = [(predict(batch.inputs).argmax(1)) for batch in data.batches(BATCH)]
    return (torch.cat(hits) == labels).double().mean().item()
