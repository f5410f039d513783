"""Means of models, parameter by parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .base import Upload


@torch.no_grad()
def weighted_mean(uploads: Sequence[Upload]) -> dict[str, Tensor]:
    """sum_i n_i theta_i / sum_i n_i, key by key over the uploads that hold the key, accumulated in float64.

    Floating-point buffers (BatchNorm's running statistics) are averaged like parameters; integer ones (its batch
    counter) take the largest value, since an average of counters counts nothing. One upload alone comes back to the
    last bit.
    """
    sums: dict[str, Tensor] = {}
    weights: dict[str, int] = {}
    kinds: dict[str, torch.dtype] = {}
    for upload in uploads:
        for name, tensor in upload.message.tensors.items():
            kinds[name] = tensor.dtype
            weights[name] = weights.get(name, 0) + upload.samples
            if not tensor.is_floating_point():
                sums[name] = torch.maximum(sums.get(name, tensor), tensor)
            elif name in sums:
                sums[name].add_(tensor.double(), alpha=upload.samples)
            else:
                sums[name] = tensor.double() * upload.samples
    means = {name: total / weights[name] if total.is_floating_point() else total for name, total in sums.items()}
    return {name: mean.to(kinds[name]) for name, mean in means.items()}


def middle(one: Mapping[str, Tensor], other: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) * one + share * other; of integers (BatchNorm's counters) the larger."""
    return {
        name: (one[name] * (1 - share) + other[name] * share).to(one[name].dtype)
        if one[name].is_floating_point()
        else torch.maximum(one[name], other[name])
        for name in one
    }
