"""Federated linear probing."""

from __future__ import annotations

from .base import register
from .tuning import FineTuning


@register("head_only")
class HeadOnly(FineTuning):
    """FedAvg of a classifier on the frozen foundation model, which cannot forget and cannot adapt.

    min_W CE( W h_F(x), y )                                       [field: linear probing]
    """

    part = "head"
