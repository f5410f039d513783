"""The parameters of large_small."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from errors import InputError
from models.adapted import Part

from .base import Setting
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

    def check(self, setting: Setting) -> None:
        """What these parameters ask of the networks and of each other.

        Raises:
            InputError: a psi that assists and that nobody teaches, the average without one network and weights, or
                an adapter to train where there is none.
        """
        if self.classifier == "psi" and self.fusion not in ("r1", "both"):
            raise InputError(
                "methods.large_small.classifier: psi needs fusion: r1 or both, which teach it (got fusion: "
                f"{self.fusion})"
            )
        networks = setting.architectures
        if self.fusion == "average" and (len(networks) > 1 or self.send == "logits"):
            raise InputError(
                "methods.large_small.fusion: average needs one network for all clients and send: weights (got "
                f"{len(networks)} networks, send: {self.send})"
            )
        bare = [each.name for each in networks if not each.options.get("adapter")]
        if self.trains == "adapter" and bare:
            raise InputError(
                "methods.large_small.trains: adapter needs one in every network; set model.adapter to its units (got "
                f"none in {', '.join(bare)})"
            )
