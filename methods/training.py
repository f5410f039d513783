"""Local training: its parameters, a client's data, and what a method sees of a client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from randomness import generator
from validation import Section

from .augmentation import Augmentation
from .state import Message, Moment, State


class TrainParameters(Section):
    """The `train` section of params.yaml."""

    rounds: int = Field(3, ge=1, description="communication rounds in each experience")
    local_epochs: int = Field(2, ge=1, description="passes over a client's own data in a round")
    batch_size: int = Field(32, ge=1, description="samples in a minibatch")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="local optimizer, fresh in every round")
    learning_rate: float = Field(0.05, gt=0, description="step size of the local optimizer")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum of sgd; 0 is none")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty of the local optimizer; 0 is none")
    clip: float = Field(0.0, ge=0, description="largest norm of a step's gradient in local training; 0 is no limit")
    warmup: float = Field(
        0.0, ge=0, le=1, description="share of an experience's rounds over which the step size rises to its full value"
    )
    clients_per_round: Literal["all"] | int = Field(
        "all", description="clients sampled in a round, at least 1; 'all' takes every client that has data"
    )
    augmentation: Augmentation = Field(
        default_factory=Augmentation, description="what is done to training images, batch by batch"
    )

    def optimizer_for(self, parameters: Sequence[nn.Parameter], round: int | None = None) -> torch.optim.Optimizer:
        """A fresh optimizer; with `round` its step size is that of the round: `warmup` is linear, then it stays."""
        rising = self.warmup * self.rounds
        share = 1.0 if round is None or round + 1 >= rising else (round + 1) / rising
        settings = {"lr": share * self.learning_rate, "weight_decay": self.weight_decay, "fused": True}
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, momentum=self.momentum, **settings)
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.optimizer](parameters, **settings)


class Batch(NamedTuple):
    inputs: Tensor  # images (batch, channels, height, width), float32 in [-1, 1]; texts (batch, length), uint8
    labels: Tensor  # (batch,), int64, global label space
    rows: Tensor | None = None  # (batch,), int64, where these samples stand in the client's data


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1]; by constants, since statistics of private data would leave the client."""
    return images.float().div_(127.5).sub_(1)


def cuts(count: int, size: int) -> list[int]:
    """Where minibatches of `size` begin in `count` samples, and where the last one ends; see `LocalData.batches`."""
    places = [*range(0, count, size), count]
    if len(places) > 2 and places[-1] - places[-2] == 1:
        del places[-2]
    return places


def minibatches(count: int, size: int) -> int:
    """How many minibatches of `size` there are in `count` samples, at least 1; see `cuts`."""
    full, rest = divmod(count, size)
    return max(1, full + (rest > 1))


class LocalData:
    """The samples of one client in one experience, kept as uint8; images are turned to float batch by batch.

    Args:
        inputs: images (samples, channels, height, width) or texts (samples, length) in UTF-8, uint8; may be
            memory-mapped.
        labels: (samples,), int64.
        device: where batches are used.
    """

    def __init__(self, inputs: np.ndarray, labels: np.ndarray, device: torch.device | str = "cpu") -> None:
        self.inputs = torch.from_numpy(np.ascontiguousarray(inputs)).to(device)
        self.labels = torch.from_numpy(np.ascontiguousarray(labels)).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[Batch]:
        """Minibatches of `size` in the given order (default: as stored).

        A last batch of one sample joins the one before it: batch normalisation cannot use a single sample.
        """
        order = torch.arange(len(self)) if order is None else order
        order = order.to(self.labels.device)
        for start, end in pairwise(cuts(len(self), size)):
            yield self.batch(order[start:end])

    def batch(self, rows: Tensor) -> Batch:
        """The samples `rows` as a network takes them."""
        inputs = self.inputs[rows]
        return Batch(inputs if inputs.dim() == 2 else to_float(inputs), self.labels[rows], rows)

    def shuffled(self, size: int, epochs: int, draw: torch.Generator) -> Iterator[Batch]:
        """`epochs` passes over the data, each in an order of its own drawn from `draw`."""
        for _ in range(epochs):
            yield from self.batches(size, torch.randperm(len(self), generator=draw))


@dataclass(frozen=True)
class Client:
    """All that a method may know where a client trains.

    `moment` is the client's own: where clients arrive asynchronously it lags behind the server's.
    """

    id: int
    moment: Moment
    seed: int
    data: LocalData
    classes: tuple[int, ...]  # C_i^t, those of the current experience
    earlier: tuple[tuple[int, ...], ...]  # C_i^s of each experience s < t
    task_aware: bool  # the experience of a sample is known when it is predicted (task-incremental)
    state: State  # what this client kept from its last participation
    received: Message | None  # what the server sent
    # Measures a model on the client's own test data of this experience, among its classes; nothing comes back. Names
    # the training that the model is in (`scratch`) and its epochs so far: the learning curves of the results.
    watch: Callable[[str, int, nn.Module], None] = lambda training, epoch, model: None
    draws: str = ""  # which of several trainings in one round this is, where each draws by itself

    @cached_property
    def known(self) -> tuple[int, ...]:
        """C_i^{<t}, sorted."""
        return tuple(sorted({label for classes in self.earlier for label in classes}))

    @cached_property
    def seen(self) -> tuple[int, ...]:
        """C_i^{<=t}, sorted."""
        return tuple(sorted({*self.known, *self.classes}))

    @property
    def candidates(self) -> tuple[int, ...]:
        """The classes among which a sample of the current experience is predicted: C_i^t if it is known to be of it."""
        return self.classes if self.task_aware else self.seen

    @property
    def old_heads(self) -> tuple[tuple[int, ...], ...]:
        """The groups of earlier classes that compete with each other: one per experience if task-aware, else one.

        An experience that the client missed (growth) had none.
        """
        return tuple(classes for classes in (self.earlier if self.task_aware else (self.known,)) if classes)

    def batches(self, train: TrainParameters) -> Iterator[Batch]:
        """`local_epochs` passes over the client's data in minibatches, shuffled and augmented."""
        draw = self.generator("augmentation")
        for batch in self.data.shuffled(train.batch_size, train.local_epochs, self.generator("batches")):
            active = train.augmentation.active
            yield batch._replace(inputs=train.augmentation.apply(batch.inputs, draw)) if active else batch

    def generator(self, purpose: str) -> torch.Generator:
        """This client's own stream of randomness for `purpose` in this round."""
        experience, round = self.moment
        which = (self.draws,) if self.draws else ()
        return generator(self.seed, "client", self.id, "experience", experience, "round", round, *which, purpose)


@dataclass(frozen=True)
class Update:
    """What client training gives back."""

    state: State  # kept by the client
    message: Message | None  # sent to the server
    model: nn.Module  # the model just trained (images -> logits), measured before fusion
    loss: float  # mean over the steps of this round
    steps: int  # optimizer steps
    # Simulated time of the training: forward passes of one block over a minibatch on a device of speed 1, divided by
    # the device's speed; 0 where the method has no cost model.
    time: float = 0.0
    # Rows of plain values for the tables of the results, by their names: what the client decided. All rows of a table
    # have the same keys; experience, round and client are put before them.
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)


def cross_entropy(logits: Tensor, labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Cross-entropy over `classes` only: the logits of all others neither compete nor receive gradient."""
    index = torch.as_tensor(classes, device=logits.device)
    place = torch.full((logits.shape[1],), -1, device=logits.device)
    place[index] = torch.arange(len(classes), device=logits.device)
    return F.cross_entropy(logits[:, index], place[labels])


def distillation(student: Tensor, teacher: Tensor, classes: Sequence[int], temperature: float) -> Tensor:
    """tau^2 KL( p_teacher^tau || p_student^tau ) over `classes`, mean over the batch (Hinton et al. 2015).

    Args:
        student, teacher: logits (batch, all classes); no gradient flows to the teacher.
    """
    index = torch.as_tensor(classes, device=student.device)
    log_student = F.log_softmax(student[:, index] / temperature, dim=1)
    log_teacher = F.log_softmax(teacher[:, index].detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def fit(
    model: nn.Module,
    client: Client,
    train: TrainParameters,
    loss: Callable[[nn.Module, Batch], Tensor],
    adjust: Callable[[nn.Module], None] | None = None,
    watch: Callable[[int], None] | None = None,
) -> tuple[float, int]:
    """Minimises `loss` over the client's data for `local_epochs`; returns the mean loss and the number of steps.

    Args:
        adjust: called with the model between backward and step, to change its gradients in place.
        watch: called before the first epoch and after each with the number of epochs done.
    """
    in_pass = len(cuts(len(client.data), train.batch_size)) - 1
    if watch:
        watch(0)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = train.optimizer_for(parameters, client.moment.round)
    total, steps = torch.zeros((), device=client.data.labels.device), 0
    for batch in client.batches(train):
        value = loss(model, batch)
        optimizer.zero_grad()
        value.backward()
        if adjust:
            adjust(model)
        if train.clip:
            nn.utils.clip_grad_norm_(parameters, train.clip)
        optimizer.step()
        total += value.detach()  # stays on the device: reading it every step would wait for the GPU
        steps += 1
        if watch and steps % in_pass == 0:
            watch(steps // in_pass)
            model.train()
    return float(total) / max(steps, 1), steps
