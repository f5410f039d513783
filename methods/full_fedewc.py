"""Full fine-tuning held by elastic weight consolidation."""

from __future__ import annotations

from .base import register
from .fedewc import FedEWC
from .tuning import FineTuning


@register("full_fedewc")
class FullFedEWC(FineTuning, FedEWC):
    """FedEWC that trains the whole foundation model.

    L = CE(theta) + lambda/2 sum_k F*_k (theta_k - theta*_k)^2, see `fedewc`. Kirkpatrick et al., PNAS 2017. It holds
    what earlier experiences need, not what pre-training needed, whose data are gone when the rounds begin.
    """

    part = "everything"
