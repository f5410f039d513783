"""Small model continual fine-tuning: what a client of large_small does with its small model."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from errors import InputError
from models.adapted import Adapted
from models.initial import initialise
from models.registry import Classifier

from .assistance import Knowledge, Public, Term, assisting, by_features, by_logits, on_public, retention
from .base import Method, Setting
from .fisher import diagonal, pull
from .state import State, prefixed
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
        "means", description="of the assisting foundation model: nearest class mean, or psi as the server last sent it"
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
    psi: Adapted | None,
    public: Public,
) -> tuple[State, float, int]:
    """Trains the small model in place; returns what the client keeps of it, the mean loss and the number of steps.

    Args:
        psi: F with the trainable part that the server last sent; None before the first has come.
        public: D_s, which the client has as it has F.
    """
    experience = client.moment.experience
    begins = client.state.values.get("experience") != experience
    knowledge = Knowledge(client, setting.foundation(), setting.architecture.classes)
    kept = State(knowledge.tensors(), {"experience": experience, "seen": list(client.seen)})
    previous = dict(model.state_dict()) if begins and client.known else client.state.part("previous")
    previous = {name: each.clone().cpu() for name, each in previous.items()}
    importance = client.state.part("importance")

    choose(model, params.trains)
    terms: list[Term] = []
    projection = None
    if params.alpha:
        logits = assisting(client.data, knowledge.features, kept, params, psi)
        if logits is None:
            projection = _projection(client, model.width, knowledge.features.shape[1], begins)
            terms.append(by_features(params, knowledge, projection))
        else:
            terms.append(by_logits(params, client, logits))
            if params.assists_on == "both":
                table = assisting(public.data, public.features, kept, params, psi)
                terms.append(on_public(params, client, public.data, table, setting.train.batch_size))
    if params.beta and previous:
        terms.append(retention(params, client, setting.load(previous, client.id).eval()))
    if params.gamma and previous and importance:
        stiffness = {name: 2 * params.gamma * each for name, each in importance.items()}
        hold = pull(stiffness, previous, setting.train.learning_rate, setting.device)
        terms.append(lambda model, *_: hold(model))
    competing = client.classes if params.compete == "current" else client.candidates

    def loss(model: nn.Module, batch: Batch) -> Tensor:
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
        last = client.moment.round == setting.train.rounds - 1
        own |= prefixed("importance", _accumulated(importance, client, model, params) if last else importance)
    model.requires_grad_(True)
    return State(own, kept.values), mean, steps


def choose(model: Classifier, what: str) -> None:
    """Only the chosen part of a small model takes gradients."""
    if what == "all":
        return
    parts = [model.adapter] if what == "adapter" else model.last_stage()
    if parts == [None]:
        raise InputError("methods.large_small.trains: adapter needs one in the network; set model.adapter to its units")
    model.requires_grad_(False)
    for each in (*parts, model.head):
        each.requires_grad_(True)


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
    """Omega: the Fisher information of all experiences so far, summed."""
    new = diagonal(model, client.data, client.candidates, params.fisher_samples, client.generator("fisher"))
    return {name: old[name] + each if name in old else each for name, each in new.items()}
