"""Federated adapters."""

from __future__ import annotations

from pydantic import Field

from .base import register
from .fedavg import FedAvg
from .tuning import FineTuning


@register("adapter")
class Adapters(FineTuning):
    """FedAvg of a bottleneck adapter on the output of every block, and a classifier.

        h + W_2 gelu(W_1 h),   W_2 = 0 at the start               Houlsby et al., ICML 2019

    One adapter a block, after the MLP: Pfeiffer et al., EACL 2021. PEFT has none of this kind.
    """

    part = "adapters"

    class Params(FedAvg.Params):
        rank: int = Field(8, ge=1, description="units of each adapter")
