"""The upper bound."""

from __future__ import annotations

from typing import ClassVar

from .base import register
from .local import Local


@register("joint", multitask=True)
class Joint(Local):
    """All data of all clients and experiences so far, trained centrally: the upper bound.

        theta <- argmin CE(theta; union over i and s <= t of D_i^s)                                  [field]

    It breaks both rules of the game (data leave the clients, old data are kept) and is there to show what they cost.
    """

    centralised = True
    evaluates: ClassVar = {"global": "client"}  # held by the centre, the only participant
