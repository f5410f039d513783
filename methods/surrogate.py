"""The server's surrogate set D_s: a few samples that never were a client's, on which models teach each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from errors import InputError
from randomness import generator
from validation import Section

from .base import Setting
from .training import LocalData

BATCH = 256  # samples at a time where no gradients are needed


class SurrogateParameters(Section):
    """`methods.*.surrogate`."""

    source: str = Field(
        "public", description="public (the stream's public split), noise, or another source such as folder:PATH"
    )
    per_class: int = Field(20, ge=1, description="samples of each class; without classes as many in all")
    labelled: bool = Field(False, description="whether the server uses the labels of the public split")


def surrogate(parameters: SurrogateParameters, setting: Setting) -> LocalData:
    """D_s; drawn from the experiment seed, so that all who need it hold the same one.

    From the public split `per_class` samples of each class, all of a class that has fewer. From noise or another source
    `per_class` times the number of classes, with label 0: nothing is known of them.

    Raises:
        InputError: `labelled` without labels of the stream's classes, noise in place of texts, or no such source.
    """
    classes, draw = setting.architecture.classes, generator(setting.seed, "surrogate")
    if parameters.source == "public":
        data = setting.public()
        order = torch.randperm(len(data), generator=draw)
        labels = data.labels.cpu()[order]
        rows = torch.cat([order[labels == each][: parameters.per_class] for each in range(classes)])
        return part(data, rows.sort().values)
    if parameters.labelled:
        raise InputError(
            f"methods.large_small.surrogate.labelled: only the public split has the stream's labels (got source "
            f"{parameters.source})"
        )
    count, device = parameters.per_class * classes, setting.device
    if parameters.source == "noise":
        if setting.architecture.modality == "text":
            raise InputError("methods.large_small.surrogate.source: noise is for images (got a stream of texts)")
        inputs = torch.randint(0, 256, (count, *setting.architecture.shape), generator=draw, dtype=torch.uint8)
        return LocalData(inputs.numpy(), torch.zeros(count, dtype=torch.int64).numpy(), device)
    try:
        data = setting.outside(parameters.source)
    except InputError as error:
        raise InputError(f"methods.large_small.surrogate.source: public, noise or another source; {error}") from None
    chosen = part(data, torch.randperm(len(data), generator=draw)[:count].sort().values)
    chosen.labels = torch.zeros_like(chosen.labels)
    return chosen


def part(data: LocalData, rows: Tensor) -> LocalData:
    rows = rows.to(data.labels.device)
    return LocalData(data.inputs[rows].cpu().numpy(), data.labels[rows].cpu().numpy(), data.labels.device)


@torch.no_grad()
def logits_on(model: nn.Module, data: LocalData) -> Tensor:
    """(samples, classes), the model in evaluation mode."""
    model.eval()
    return torch.cat([model(batch.inputs) for batch in data.batches(BATCH)])


def mask(classes: Sequence[int], count: int) -> Tensor:
    """(count,) bool: True at `classes`."""
    found = torch.zeros(count, dtype=torch.bool)
    found[list(classes)] = True
    return found
