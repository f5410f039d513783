"""The parameters of large_small."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.adapted import Part

from .fine_tuning import FineTuning
from .one_by_one import DistillationParameters
from .surrogate import SurrogateParameters


class Collaboration(FineTuning):
    """`methods.large_small`: the client's part, and the server's."""

    fusion: Literal["r2", "r1", "both", "average", "all_at_once", "none"] = Field(
        "both", description="r2 (between clients), r1 (into the foundation model), both, average, all_at_once, none"
    )
    send: Literal["weights", "logits"] = Field("weights", description="what a client sends of its small model")
    part: Part = Field("adapter", description="psi: the classifier alone (head), with an adapter or with LoRA")
    rank: int = Field(16, ge=1, description="psi: units of the adapter, or rank of LoRA")
    distillation: DistillationParameters = Field(
        default_factory=DistillationParameters, description="one-by-one distillation"
    )
    surrogate: SurrogateParameters = Field(default_factory=SurrogateParameters, description="D_s, see there")
