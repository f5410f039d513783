"""Federated low-rank adaptation."""

from __future__ import annotations

from pydantic import Field

from .base import register
from .fedavg import FedAvg
from .tuning import FineTuning


@register("fedlora")
class FedLoRA(FineTuning):
    """FedAvg of low-rank matrices beside the attention's, and a classifier.

        W + B A,   B = 0 at the start                             Hu et al., LoRA, ICLR 2022

    A and B are averaged each by itself, so the mean model is not the mean of the models: mean(B) mean(A) is not
    mean(B A); `ffa_lora` is without that. [field]
    """

    part = "lora"

    class Params(FedAvg.Params):
        rank: int = Field(8, ge=1, description="rank of B A")
