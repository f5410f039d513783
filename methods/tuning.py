"""Federated fine-tuning of a foundation model: any method that trains one model trains a part of F instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models import Architecture
from models.adapted import Adapted
from models.foundation import Foundation
from models.sharing import shared_copy

from .base import Setting
from .cost import block_forwards
from .fedavg import FedAvg
from .state import State
from .training import Client, Update


@dataclass(frozen=True)
class Tunable:
    """Stands where an `Architecture` does: its networks are F with a part that learns, its tensors that part's.

    Args:
        base: the stream's own architecture, for the shape of its inputs and its classes.
        foundation: gives F.
        part: see `Adapted`.
        settings: the part's own options.
        seed: of the part's initial values.
    """

    base: Architecture
    foundation: Callable[[], Foundation]
    part: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)

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
    def options(self) -> Mapping[str, object]:
        return self.base.options

    @cached_property
    def template(self) -> Adapted:
        """Never changed. Raises InputError where F has no such part."""
        return Adapted(self.foundation(), self.classes, self.part, self.seed, **self.settings)

    def initial(self, draw: torch.Generator) -> dict[str, Tensor]:
        """The part before any training: most parts change nothing then, whatever is drawn."""
        return self.state(self.template)

    def state(self, model: Adapted) -> dict[str, Tensor]:
        """What the model trains, by name."""
        return {name: each.detach().cpu() for name, each in model.psi().items()}

    def load(self, tensors: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Adapted:
        owns = self.template.psi().keys()
        return shared_copy(self.template, owns=owns.__contains__).load_psi(tensors)


class FineTuning(FedAvg):
    """Trains a part of the foundation model F and a classifier on it; F itself is frozen and never sent.

    What is sent, averaged and held is the part alone. How well F's general tasks are done with the part in place is
    measured after every experience (retention). Dropout is off, statistics of normalisation layers stay.

    A mixin for FedAvg and all that builds on it: `class FullFedCurv(FineTuning, FedCurv)`.
    """

    needs_foundation = True
    needs_devices = True
    part: ClassVar[str]  # see `models.parts.PARTS`

    def __init__(self, params, setting: Setting) -> None:
        tuned = Tunable(
            setting.architecture, setting.foundation, self.part_of(params), setting.seed, self.options(params)
        )
        super().__init__(params, replace(setting, architectures=(tuned,)))
        _ = tuned.template  # an F without such a part is refused here

    @classmethod
    def part_of(cls, params) -> str:
        return cls.part

    @classmethod
    def options(cls, params) -> dict[str, Any]:
        """The part's options. Default: what the parameters say of `rank`, if they do."""
        return {"rank": params.rank} if hasattr(params, "rank") else {}

    def train(self, client: Client) -> Update:
        update = super().train(client)
        return replace(update, time=update.steps * block_forwards(update.model) / self.setting.devices[client.id].speed)

    def general(self, server: State) -> Mapping[str, nn.Module]:
        return self.setting.load(server.part("model")).general()
