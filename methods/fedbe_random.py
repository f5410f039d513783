"""FedBE with a random allocation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import register
from .fedbe import FedBE


@register("fedbe_random")
class FedBERandom(FedBE):
    """FedBE whose clients train random added blocks, as many as their devices can.

    S_i = argmax_S sum_{k in S} u_k under T(S) <= T* and M(S) <= M_i, with u_k drawn evenly from [0, 1]. [ours]
    """

    class Params(FedBE.Params):
        allocation: Literal["random"] = Field("random", description="a random subset")
