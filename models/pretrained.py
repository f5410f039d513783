"""A network of several tasks whose encoders and experts are a foundation model's: frozen, with low-rank matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from errors import InputError

from .foundation import Foundation
from .registry import Architecture


@dataclass(frozen=True)
class Pretrained:
    """Stands where an `Architecture` does: its networks are F's, its tensors those that are trained.

    Trained and sent are the low-rank matrices, the shared projection, the transformers and the heads, which begin as
    F's; encoders and experts are F's and stay.

    Args:
        base: of the network with `rank`.
        foundation: gives F, whose backbone is the same network without.
    """

    base: Architecture
    foundation: Callable[[], Foundation]

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def classes(self) -> int:
        return self.base.classes

    @property
    def options(self) -> Mapping[str, Any]:
        return self.base.options

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the tensors that are trained."""
        return tuple(name for name, each in self.base.template.named_parameters() if each.requires_grad)

    @cached_property
    def known(self) -> dict[str, Tensor]:
        """F's tensors, those that the network has.

        Raises:
            InputError: F is another network.
        """
        own, found = self.base.template.state_dict(), self.foundation().backbone.network.state_dict()
        missing = sorted(name for name in own if name not in found and ".up." not in name and ".down." not in name)
        wrong = sorted(name for name in own if name in found and own[name].shape != found[name].shape)
        if missing or wrong:
            raise InputError(
                "foundation.network must be the network of section model without its rank: "
                f"{(missing or wrong)[0]} {'is missing there' if missing else 'has another shape there'}"
            )
        return {name: found[name] for name in own if name in found}

    def initial(self, draw: torch.Generator) -> dict[str, Tensor]:
        """What is trained, before any training: F's, and low-rank matrices that change nothing."""
        every = {**self.base.initial(draw), **self.known}
        return {name: every[name] for name in self.names}

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """What the model trains, by name."""
        return {name: each.detach().cpu() for name, each in model.named_parameters() if each.requires_grad}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> nn.Module:
        return self.base.load({**self.known, **tensors}, device)
