"""Initial values, drawn from one given generator."""

from __future__ import annotations

import math

import torch
from torch import nn

from .adapter import Zero

STD = 0.02  # of embeddings, positions and class tokens


def initialise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Gives a meta-device network memory and initial values, drawn from `generator` alone.

    Convolution and linear layers: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weight and bias (He et al. 2015 with
    a = sqrt(5), PyTorch's default); embeddings, which also hold positions and class tokens: normal with standard
    deviation 0.02, truncated at two of them (BERT and ViT) [field]; normalisation layers: weight 1, bias 0, running
    statistics 0 and 1.

    Raises:
        TypeError: a layer that holds parameters and is not known here (initialising it wrongly would be worse).
    """
    model = model.to_empty(device="cpu")
    for layer in model.modules():
        own = list(layer.parameters(recurse=False)) + list(layer.buffers(recurse=False))
        if not own:
            continue
        if isinstance(layer, Zero):
            for parameter in own:
                nn.init.zeros_(parameter)
        elif isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for parameter in own:
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif isinstance(layer, nn.Embedding):
            nn.init.trunc_normal_(layer.weight, std=STD, a=-2 * STD, b=2 * STD, generator=generator)
        elif isinstance(layer, nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d):
            if layer.weight is not None:
                nn.init.ones_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            if isinstance(layer, nn.BatchNorm2d) and layer.track_running_stats:
                layer.reset_running_stats()
        else:
            raise TypeError(f"initialise does not know the layer {type(layer).__name__}")
    return model
