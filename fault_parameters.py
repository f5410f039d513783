"""The section `faults` of params.yaml: clients that drop out or are slow, simulated."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from validation import Section


class FaultParameters(Section):
    """The `faults` section. It changes results, so it is part of an experiment's identity where it is active."""

    drop: float = Field(0.0, ge=0, le=1, description="share of a round's clients that do not answer")
    slow: float = Field(0.0, ge=0, le=1, description="share of a round's clients that are slow")
    slow_factor: float = Field(5.0, ge=1, description="how many times as long a slow client takes, in simulated time")
    deadline: Annotated[float, Field(gt=0)] | None = Field(
        None, description="simulated time after which a client is left out, in medians of the round; null: none"
    )

    @property
    def active(self) -> bool:
        return self.drop > 0 or self.slow > 0 or self.deadline is not None
