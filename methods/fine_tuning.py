"""Small model continual fine-tuning: what a client of large_small does with its small model."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.initial import initialise
from models.registry import Classifier

from .assistance import Knowledge, Psi, Public, Term, assisting, by_features, by_logits, on_public, retention
from .base import Method, Setting
from .fisher import diagonal, pull
from .state import State, prefixed
from .surrogate import mask
from .training import Batch, Client, cross_entropy, fit


class FineTuning(Method.Params):
    """The client's part of `methods.large_small`."""

    alpha: float = Field(1.0, ge=0, description="weight of the foundation model's assistance; 0 is none")
    beta: float = Field(1.0, ge=0, description="weight of the distillation from the last experience's model; 0 is none")
    gamma: float = Field(0.0, ge=0, description="weight of the pull to the last experience's model (EWC); 0 is none")
    temperature: float = Field(2.0, gt=0, description="tau, softens the predictions of both distillations")
    compete: Literal["current", "seen"] = Field(
        "current", description="classes of the cross-entropy: the current experience's, or all seen as in local"
    )
    classifier: Literal["means", "psi"] = Field(
        "means",
        description="of the assisting foundation model: nearest class mean, or psi as the server last sent it (on "
        "digits, seed 0, far worse: 30 % against 85 %)",
    )
    assists_on: Literal["own", "both"] = Field(
        "both", description="where the foundation model assists: on the client's own samples, or on the surrogate's too"
    )
    sharpness: float = Field(10.0, gt=0, description="by which the cosines to the class means are multiplied")
    trains: Literal["all", "last", "adapter"] = Field(
        "all", description="of the small model: all, its last stage and head, or its adapter (model.adapter) and head"
    )
    fisher_samples: int = Field(200, ge=1, description="samples that a client's Fisher information is computed on")


def fine_tune(
    client: Client,
    model: Classifier,
    params: FineTuning,
    setting: Setting,
    psi: Psi | None,
    public: Public,
) -> tuple[State, float, int]:
    """Trains the small model in place; returns what the client keeps of it, the mean loss and the number of steps.

    Args:
        psi: None before the first has come.
        public: D_s, which the client has as it has F.

    What it keeps beside tensors: `seen`, the classes that it has trained on, and `before`, those of them in earlier
    experiences. The stream's own lists also name classes of experiences in which the client was never sampled.
    The pull of `gamma` is bounded, 2 gamma Omega <= 1 / learning rate, see `fisher.pull`.
    """
    experience = client.moment.experience
    begins = client.state.values.get("experience") != experience
    knowledge = Knowledge(client, setting.foundation(), setting.architecture.classes)
    seen = client.state.values.get("seen", [])
    before = seen if begins else client.state.values["before"]
    values = {"experience": experience, "before": before, "seen": sorted({*seen, *client.classes})}
    kept = State(knowledge.tensors(), values)
    previous = dict(model.state_dict()) if begins and before else client.state.part("previous")
    previous = {name: each.clone().cpu() for name, each in previous.items()}
    importance = client.state.part("importance" if begins else "importance_before")

    still = choose(model, params.trains)
    terms: list[Term] = []
    projection = None
    if params.alpha:
        answers = assisting(client.data, knowledge.features, kept, params, psi)
        told = [each for each in client.candidates if answers is not None and answers.classes[each]]
        told = told if len(told) > 1 else []  # a distribution over one class says nothing
        if told:
            terms.append(by_logits(params, told, answers.logits))
        if told and params.assists_on == "both":
            table = assisting(public.data, public.features, kept, params, psi).logits
            terms.append(on_public(params, client, told, public.data, table, setting.train.batch_size))
        unknown = mask(sorted({*client.classes} - {*told}), setting.architecture.classes).to(client.data.labels.device)
        if params.classifier == "psi" and unknown.any():
            projection = _projection(client, model.width, knowledge.features.shape[1], begins)
            terms.append(by_features(params, knowledge, projection, unknown))
    if params.beta and previous:
        heads = [[each for each in head if each in before] for head in client.old_heads]
        terms.append(retention(params, [head for head in heads if head], setting.load(previous, client.id).eval()))
    if params.gamma and previous and importance:
        stiffness = {name: 2 * params.gamma * each for name, each in importance.items()}
        hold = pull(stiffness, previous, setting.train.learning_rate, setting.device)
        terms.append(lambda model, *_: hold(model))
    competing = client.classes if params.compete == "current" else client.candidates

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        for each in still:  # `fit` has put all of the model in training mode
            each.eval()
        features = model.features(batch.inputs)
        logits = model.head(features)
        value = cross_entropy(logits, batch.labels, competing)
        return value + sum(term(model, batch, features, logits) for term in terms) if terms else value

    if projection is not None:
        model.assisted = projection  # it learns with the model, and stays behind when the model goes
    mean, steps = fit(model, client, setting.train, loss)
    own = {**kept.tensors, **prefixed("previous", previous)}
    if projection is not None:
        own |= prefixed("projection", projection.state_dict())
        del model.assisted
    if params.gamma:
        # In every round: nobody knows in which round of an experience the client is sampled for the last time.
        own |= prefixed("importance", _accumulated(importance, client, model, params))
        own |= prefixed("importance_before", importance)
    model.requires_grad_(True)
    return State(own, kept.values), mean, steps


def choose(model: Classifier, what: str) -> list[nn.Module]:
    """Only the chosen part of a small model takes gradients.

    Returns:
        The batch normalisations of the rest: in training mode their running statistics would move all the same.
    """
    if what == "all":
        return []
    parts = [model.adapter] if what == "adapter" else model.last_stage()
    model.requires_grad_(False)
    for each in (*parts, model.head):
        each.requires_grad_(True)
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    return [each for each in norms if not any(own.requires_grad for own in each.parameters())]


def _projection(client: Client, width: int, target: int, begins: bool) -> nn.Linear:
    """P, drawn when an experience begins, kept until it ends."""
    with torch.device("meta"):
        projection = nn.Linear(width, target, bias=False)
    projection = initialise(projection, client.generator("projection"))
    known = client.state.part("projection")
    if known and not begins:
        projection.load_state_dict(known)
    return projection.to(client.data.labels.device)


def _accumulated(old: dict[str, Tensor], client: Client, model: nn.Module, params: FineTuning) -> dict[str, Tensor]:
    """Omega: the Fisher information of all experiences so far, summed; `old` is that of the earlier ones."""
    new = diagonal(model, client.data, client.candidates, params.fisher_samples, client.generator("fisher"))
    return {name: old[name] + each if name in old else each for name, each in new.items()}
