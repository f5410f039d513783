"""Federated tuning of biases."""

from __future__ import annotations

from .base import register
from .tuning import FineTuning


@register("bitfit")
class BitFit(FineTuning):
    """FedAvg of the foundation model's biases and a classifier.

    b <- sum_i n_i b_i / sum_i n_i of every bias b                Ben Zaken et al., ACL 2022; federated [field]
    """

    part = "biases"
