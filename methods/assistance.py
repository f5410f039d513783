"""What a client of large_small has of the foundation model, and the terms that it adds to the small model's loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.adapted import Adapted, ClassMeans
from models.foundation import Foundation

from .one_by_one import View
from .pretraining import all_features
from .state import State, prefixed
from .surrogate import logits_on
from .training import Batch, Client, LocalData, distillation

# A term of the loss, of the model, a batch, the model's features of it and its logits.
Term = Callable[[nn.Module, Batch, Tensor, Tensor], Tensor]


class Public(NamedTuple):
    """The surrogate set D_s and F's features of it, (samples, width)."""

    data: LocalData
    features: Tensor


class Psi(NamedTuple):
    """F with the trainable part that the server last sent, and (classes,) bool, what that was taught until then."""

    model: Adapted
    taught: Tensor


class Knowledge:
    """What a client knows of the foundation model F: features of its samples now, and means of all classes it has met.

    F does not change while an experience lasts, so features are computed once and kept. They and the means stay here.
    They are of the images as they are: with `train.augmentation` the small model sees other views than F did.

    Attributes:
        features: (samples, width) of the current experience's data.
        sums, counts: (classes, width) float64 and (classes,), of all samples met so far.
    """

    NAMES = ("features", "sums", "counts")

    def __init__(self, client: Client, foundation: Foundation, classes: int) -> None:
        kept, data = client.state, client.data
        if kept.values.get("experience") == client.moment.experience:
            self.features, self.sums, self.counts = (
                kept.tensors[f"foundation.{name}"].to(data.labels.device) for name in self.NAMES
            )
            return
        self.features = all_features(foundation, data)
        one_hot = F.one_hot(data.labels, classes)
        self.sums = one_hot.double().T @ self.features.double()
        self.counts = one_hot.sum(dim=0)
        if "experience" in kept.values:
            self.sums += kept.tensors["foundation.sums"].to(self.sums.device)
            self.counts += kept.tensors["foundation.counts"].to(self.counts.device)

    def tensors(self) -> dict[str, Tensor]:
        return prefixed("foundation", {name: getattr(self, name) for name in self.NAMES})


def class_means(
    state: State, foundation: Foundation | None, sharpness: float, device: torch.device | str
) -> ClassMeans:
    """F with the nearest mean of the classes that the client, whose state this is, has met."""
    sums, counts = (state.tensors[f"foundation.{name}"].to(device) for name in ("sums", "counts"))
    return ClassMeans(foundation, (sums / counts.clamp(min=1)[:, None]).float(), counts > 0, 1 / sharpness)


class Weights(Protocol):
    """What the terms read of `FineTuning`."""

    alpha: float
    beta: float
    temperature: float
    classifier: str
    sharpness: float


@torch.no_grad()
def assisting(data: LocalData, features: Tensor, kept: State, params: Weights, psi: Psi | None) -> View | None:
    """F's logits for each of these samples, and the classes that it knows; None where it has no classifier yet.

    Logits of other classes say nothing: the client has no mean of them, or psi was never taught them.

    Args:
        features: F's of the same samples.
        kept: what the client knows, its class means among it.
    """
    if params.classifier == "means":
        means = class_means(kept, None, params.sharpness, features.device)
        return View(means.from_features(features), means.known)
    if psi is None:
        return None
    model = psi.model
    return View(model.from_features(features) if model.frozen else logits_on(model, data), psi.taught)


def by_logits(params: Weights, classes: Sequence[int], logits: Tensor) -> Term:
    """alpha tau^2 KL( p_F on C || p_theta on C ), C the `classes` of C_i^{<=t} that F knows."""

    def term(model: nn.Module, batch: Batch, features: Tensor, own: Tensor) -> Tensor:
        return params.alpha * distillation(own, logits[batch.rows], classes, params.temperature)

    return term


def by_features(params: Weights, knowledge: Knowledge, projection: nn.Linear, unknown: Tensor) -> Term:
    """alpha ( 1 - cos( P h_theta(x), h_F(x) ) ) on samples of classes for which F has no logits; 0 on all others.

    Args:
        unknown: (classes,) bool, these classes.
    """

    def term(model: nn.Module, batch: Batch, features: Tensor, own: Tensor) -> Tensor:
        away = 1 - F.cosine_similarity(projection(features), knowledge.features[batch.rows], dim=1)
        return params.alpha * (away * unknown[batch.labels]).mean()

    return term


def on_public(
    params: Weights, client: Client, classes: Sequence[int], data: LocalData, logits: Tensor, size: int
) -> Term:
    """The same as `by_logits` on as many samples of D_s, drawn anew in each step. [ours]

    On samples of new classes alone F says that they are new: that teaches the small model to call everything new. D_s
    has samples that look like the old classes, and F, which knows their means, says so.
    """
    draw = client.generator("surrogate")

    def term(model: nn.Module, batch: Batch, features: Tensor, own: Tensor) -> Tensor:
        rows = torch.randint(len(data), (size,), generator=draw).to(logits.device)
        answers = model(data.batch(rows).inputs)
        return params.alpha * distillation(answers, logits[rows], classes, params.temperature)

    return term


def retention(params: Weights, heads: Sequence[Sequence[int]], teacher: nn.Module) -> Term:
    """beta tau^2 KL( p_{theta_i^{t-1}} || p_theta ) on C_i^{<t}, learning without forgetting.

    Args:
        heads: the groups of earlier classes that compete with each other.
    """

    def term(model: nn.Module, batch: Batch, features: Tensor, own: Tensor) -> Tensor:
        with torch.no_grad():
            old = teacher(batch.inputs)
        return params.beta * sum(distillation(own, old, head, params.temperature) for head in heads)

    return term
