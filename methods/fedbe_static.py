"""FedBE without allocation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .base import register
from .fedbe import FedBE


@register("fedbe_static")
class FedBEStatic(FedBE):
    """FedBE whose clients all train all added blocks.

    S_i = {1, ..., K}, whatever their data and their devices. [ours]
    """

    class Params(FedBE.Params):
        allocation: Literal["all"] = Field("all", description="all blocks")
