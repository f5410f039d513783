"""How a consolidated model and an expert become one: the parameters of `consolidation.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.stages import Which
from validation import Section

Normalise = Literal["none", "mean", "scaled", "standard"]
Projection = Literal["none", "linear", "mlp"]


class ConsolidationParameters(Section):
    """`methods.dac.consolidation`."""

    iterations: int = Field(1000, ge=0, description="steps of a consolidation; 0 is none: the student as it starts")
    batch_size: int = Field(64, ge=2, description="images in a step")
    optimizer: Literal["sgd", "adam"] = Field("adam", description="of the student: sgd or adam")
    learning_rate: float = Field(0.001, gt=0, description="first step size, annealed to 0 by a cosine")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd; 0 is none")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty; 0 is none")
    normalise: Normalise = Field(
        "scaled",
        description="of each teacher's logits: none, mean (an image's mean subtracted), scaled (and divided by their "
        "root mean square over the batch), standard (by the image's own)",
    )
    hard: float = Field(0.0, ge=0, description="weight of a cross-entropy on the highest target's class; 0 is none")
    student: Literal["previous", "expert", "mean", "initial"] = Field(
        "previous", description="where the student starts: previous (model), expert, mean (of both), or initial"
    )
    batchnorm: Literal["train", "eval"] = Field(
        "train", description="statistics of the student's BatchNorm: train (of the batch), eval (as they were)"
    )


class LatentParameters(ConsolidationParameters):
    """`methods.dac.consolidation`: what projected latent distillation adds."""

    output: float = Field(1.0, ge=0, description="weight of the output distillation, L_KD; 0 is none")
    latent: float = Field(1.0, ge=0, description="lambda, weight of the latent distillation, L_PLD; 0 is dmc")
    projection: Projection = Field("linear", description="of the student's features to a teacher's: none, linear, mlp")
    layers: Which = Field("stages", description="where features are compared: penultimate, or stages (all of them)")
