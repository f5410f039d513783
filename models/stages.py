"""What a network computes on its way: the output of each of its stages, as one vector an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from .registry import Classifier, layers

Which = Literal["penultimate", "stages"]
FEW = 4  # stages of a network that is a row of equal blocks


def stages(model: Classifier) -> list[nn.Module]:
    """The modules with which a network's stages end, first to last.

    A residual network has four of its own; of a row of blocks (transformers, MobileNetV2) every quarter is one; of a
    plain sequence every layer with parameters begins one, which ends before the next; what comes before the first
    (flattening) is none.
    """
    if isinstance(getattr(model, "stages", None), nn.ModuleList):
        return list(model.stages)
    if isinstance(getattr(model, "blocks", None), nn.Sequential | nn.ModuleList):
        blocks = list(model.blocks)
        return blocks if len(blocks) < FEW else [blocks[(part + 1) * len(blocks) // FEW - 1] for part in range(FEW)]
    ends: list[nn.Module] = []
    for each in model.body:
        if layers(each):
            ends.append(each)
        elif ends:
            ends[-1] = each
    return ends


def vector(output: Tensor) -> Tensor:
    """Maps (batch, channels, height, width) or tokens (batch, tokens, width) -> their mean (batch, channels)."""
    if output.dim() == 4:
        return output.mean(dim=(2, 3))
    return output.mean(dim=1) if output.dim() == 3 else output


class Latent(nn.Module):
    """A network that also says what it computes on its way.

    Args:
        model: it is watched from now on, not copied.
        which: `penultimate`, the features that the head reads, or `stages`, the pooled output of every stage.
    """

    def __init__(self, model: Classifier, which: Which = "penultimate") -> None:
        super().__init__()
        self.model, self.which = model, which
        self._seen: list[Tensor] = []
        if which == "stages":
            for stage in stages(model):
                stage.register_forward_hook(self._remember)

    def _remember(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._seen.append(vector(output.float()))

    def forward(self, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """Inputs -> ([(batch, dim_l) for each layer l], logits (batch, classes))."""
        self._seen = []
        features = self.model.features(inputs)
        latent = [features] if self.which == "penultimate" else self._seen
        return latent, self.model.head(features)


@torch.no_grad()
def dimensions(latent: Latent, inputs: Tensor) -> Sequence[int]:
    """dim_l of each layer; the network's statistics stay as they are."""
    training = latent.model.training
    latent.model.eval()
    found = [each.shape[1] for each in latent(inputs)[0]]
    latent.model.train(training)
    return found
