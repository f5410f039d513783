"""Federated low-rank adaptation with frozen A."""

from __future__ import annotations

from .base import register
from .fedlora import FedLoRA


@register("ffa_lora")
class FFALoRA(FedLoRA):
    """LoRA whose A stays as it was drawn; B alone is trained and averaged.

    Half of the bytes, and the mean is exact: mean_i(B_i) A = mean_i(B_i A).   Sun et al., FFA-LoRA, ICLR 2024
    """

    part = "ffa_lora"
