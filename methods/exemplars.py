"""A client's exemplars: of every class it met the samples nearest to the class's mean feature. They never leave it."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models import Classifier

from .memory import Memory, balanced, groups, herding
from .state import State
from .training import Client


def of_earlier(client: Client) -> Memory:
    """The exemplars that the client kept of the experiences before its current one."""
    memory = Memory.of(client.state)
    return memory.take(memory["experiences"] < client.moment.experience) if len(memory) else memory


def rehearsing(client: Client) -> Client:
    """The client with the exemplars of earlier experiences among its samples."""
    return replace(client, data=(Memory.met(client) + of_earlier(client)).data(client.data.labels.device))


def herded(client: Client, model: Classifier, budget: int) -> Memory:
    """The exemplars of earlier experiences and those of this one, herded by `model`, equal shares of `budget`."""
    met = Memory.met(client)
    features = unit_features(model, met, client.data.labels.device)
    order = [rows[herding(features[rows], budget)] for rows in groups(met)]
    return balanced(of_earlier(client) + met.take(torch.cat(order)), budget)


def keeping(state: State, memory: Memory) -> State:
    """`state` with `memory` in place of the exemplars it holds."""
    others = {name: tensor for name, tensor in state.tensors.items() if not name.startswith("memory.")}
    return State({**others, **memory.tensors()}, state.values)


@torch.no_grad()
def unit_features(model: Classifier, memory: Memory, device: torch.device | str) -> Tensor:
    """phi(x) of all samples, scaled to length 1, on the CPU: (samples, width)."""
    model.eval()
    parts = [model.features(batch.inputs) for batch in memory.data(device).batches(512)]
    return F.normalize(torch.cat(parts), dim=1).cpu()
