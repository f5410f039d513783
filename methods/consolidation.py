"""Projected latent distillation: a consolidated model and an expert become one, on images that are nobody's data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import initialise
from models.stages import Latent, dimensions
from randomness import generator

from .aggregation import middle
from .base import Setting
from .consolidation_data import Images
from .consolidation_parameters import ConsolidationParameters, Normalise, Projection
from .state import State
from .training import cross_entropy

EVERY = 50  # iterations between two states from which a consolidation can go on


@dataclass(frozen=True)
class Teacher:
    """A model's tensors, and the classes (mask, (classes,) bool) of which it knows something."""

    tensors: Mapping[str, Tensor]
    classes: Tensor


def targets(logits: tuple[Tensor, Tensor], known: tuple[Tensor, Tensor], how: Normalise) -> Tensor:
    """y: the teachers' logits (batch, classes) joined; a class that both know has their mean. [group: ExML]

    Each teacher's are normalised over its own classes first: `mean` subtracts an image's mean [field: Zhang et al.
    2020], `scaled` also divides by the root mean square over the batch, so that no teacher is louder than the other,
    and `standard` by the image's own, so that a teacher is as loud about what it has never seen. [ours]
    """
    total = torch.zeros_like(logits[0])
    for each, classes in zip(logits, known, strict=True):
        own = each[:, classes]
        if how != "none":
            own = own - own.mean(dim=1, keepdim=True)
        if how == "scaled":
            own = own / own.square().mean().sqrt().clamp(min=1e-6)
        if how == "standard":
            own = own / own.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
        total[:, classes] += own
    return total / (known[0].long() + known[1].long()).clamp(min=1)


def projection(kind: Projection, width: int, draw: torch.Generator) -> nn.Module:
    """P: (batch, width) -> (batch, width).

    A linear one starts as the identity: student and teachers have one ancestor, and what a freshly drawn P asks for
    first is to undo it, which costs the student its features [ours, checked: docs/methods/dac.md]. An MLP is drawn.
    """
    if kind == "none":
        return nn.Identity()
    with torch.device("meta"):
        linear = [nn.Linear(width, width)]
        layers = linear if kind == "linear" else [*linear, nn.ReLU(), nn.Linear(width, width)]
        made = nn.Sequential(*layers)
    made = initialise(made, draw)
    if kind == "linear":
        with torch.no_grad():
            made[0].weight.copy_(torch.eye(width))
            made[0].bias.zero_()
    return made


def consolidate(
    previous: Teacher,
    expert: Teacher,
    images: Images,
    params: ConsolidationParameters,
    setting: Setting,
    names: tuple[str | int, ...],
    begun: State | None = None,
) -> Iterator[State]:
    """Double distillation of `previous` and `expert` into a student, with projected latent distillation.

        L    = L_KD + lambda L_PLD
        L_KD = 1/|C| || s(x) - y(x) ||^2                                        y: see `targets`
        L_PLD = sum_l ( || P_l^prev(z_l) - z_l^prev ||^2 + || P_l^new(z_l) - z_l^new ||^2 ) / dim_l

    z_l(x) are the student's features at layer l, P_l projections of them to a teacher's, learnt with it and thrown away
    at the end; means over the batch. [paper: double distillation in outputs and, projected, in latent space; ours:
    normalisation, layers, weights]

    Args:
        images: what to distil on. There is nothing else: no labels, and no way to a device's data.
        params: `LatentParameters`, or `ConsolidationParameters` alone for L_KD alone.
        names: of this consolidation's stream of randomness.
        begun: a state that an earlier call yielded, to go on from.
    Yields:
        States every few iterations; the last one's part `student` is the result.
    """
    lam, output = (getattr(params, key, default) for key, default in (("latent", 0.0), ("output", 1.0)))
    which = params.layers if lam else "penultimate"
    device = setting.device
    teachers = [Latent(setting.load(each.tensors).eval().requires_grad_(False), which) for each in (previous, expert)]
    known = (previous.classes.to(device), expert.classes.to(device))
    union = (known[0] | known[1]).nonzero().flatten()
    student = Latent(setting.load(_start(previous, expert, params.student, setting)), which)
    widths = dimensions(student, images.draw(2, generator(setting.seed, *names, "widths"))) if lam else ()
    projections = nn.ModuleDict()
    for layer, width in enumerate(widths):
        for teacher in ("previous", "expert"):
            draw = generator(setting.seed, *names, "projection", layer, teacher)
            projections[f"{layer}-{teacher}"] = projection(params.projection, width, draw)
    projections.to(device)
    learns = [*student.model.parameters(), *projections.parameters()]
    settings = {"lr": params.learning_rate, "weight_decay": params.weight_decay, "fused": True}
    if params.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(learns, momentum=params.momentum, **settings)
    else:
        optimizer = torch.optim.Adam(learns, **settings)
    first = restore(begun, student.model, projections, optimizer) if begun else 0
    student.train(params.batchnorm == "train")
    for iteration in range(first, params.iterations):
        if iteration > first and iteration % EVERY == 0:
            yield snapshot(iteration, student.model, projections, optimizer)
        x = images.draw(params.batch_size, generator(setting.seed, *names, "images", iteration))
        with torch.no_grad():
            (old, old_logits), (new, new_logits) = (teacher(x) for teacher in teachers)
            y = targets((old_logits, new_logits), known, params.normalise)
        latent, logits = student(x)
        loss = output * (logits[:, union] - y[:, union]).square().mean()
        if params.hard:
            highest = union[y[:, union].argmax(dim=1)]
            loss = loss + params.hard * cross_entropy(logits, highest, union.tolist())
        for layer, z in enumerate(latent if lam else ()):
            for teacher, z_teacher in (("previous", old[layer]), ("expert", new[layer])):
                projected = projections[f"{layer}-{teacher}"](z)
                loss = loss + lam * (projected - z_teacher).square().mean()  # the mean divides by batch and dim_l
        for group in optimizer.param_groups:
            group["lr"] = params.learning_rate * (1 + math.cos(math.pi * iteration / params.iterations)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    yield snapshot(params.iterations, student.model, projections, optimizer)


def _start(previous: Teacher, expert: Teacher, where: str, setting: Setting) -> Mapping[str, Tensor]:
    """The student's first tensors."""
    if where == "initial":
        return setting.initial_model()
    if where == "mean":
        return middle(previous.tensors, expert.tensors, 0.5)
    return previous.tensors if where == "previous" else expert.tensors


def snapshot(iteration: int, student: nn.Module, projections: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """All that the next iteration depends on: copies on the CPU."""
    tensors = {f"student.{name}": each for name, each in student.state_dict().items()}
    tensors |= {f"projections.{name}": each for name, each in projections.state_dict().items()}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, each in entries.items():
            if each is not None:
                tensors[f"optimizer.{index}.{name}"] = each
    return State({name: each.detach().cpu().clone() for name, each in tensors.items()}, {"iteration": iteration})


def restore(begun: State, student: nn.Module, projections: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """The inverse of `snapshot`, in place; returns the iteration to go on with."""
    student.load_state_dict(begun.part("student"))
    projections.load_state_dict(begun.part("projections"))
    entries: dict[int, dict[str, Tensor]] = {}
    for name, each in begun.part("optimizer").items():
        index, _, key = name.partition(".")
        entries.setdefault(int(index), {})[key] = each
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    return begun.values["iteration"]
