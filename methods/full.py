"""Federated full fine-tuning."""

from __future__ import annotations

from .base import register
from .tuning import FineTuning


@register("full")
class Full(FineTuning):
    """FedAvg of the whole foundation model: the baseline that forgets most and sends most.

    theta <- sum_i n_i theta_i / sum_i n_i of backbone and classifier. McMahan et al., AISTATS 2017, algorithm 1
    """

    part = "everything"
