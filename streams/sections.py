"""The sections below a stream: how it is partitioned, what its domains are, how blurred it is, how it grows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from validation import Section


class Partition(Section):
    """How the samples of one class are shared out among the clients."""

    kind: Literal["iid", "dirichlet", "classes", "quantity", "natural"] = Field(
        "iid",
        description="iid: every client gets the same share of a class; dirichlet: shares are drawn for each class; "
        "classes: a client holds a few classes of each experience; quantity: some clients have more of every class; "
        "natural: the source says whose a sample is",
    )
    alpha: float = Field(
        0.5,
        gt=0,
        description="dirichlet: concentration of the distribution, above 0; 0.1 is very skewed, 100 is nearly IID",
    )
    min_share: float = Field(
        0.0, ge=0, lt=1, description="dirichlet: smallest share of a class that a client may get, in [0, 1)"
    )
    per_client: int | None = Field(
        None, ge=1, description="classes: how many classes of each experience a client holds, 1 or more"
    )
    sigma: float = Field(
        1.0, ge=0, description="quantity: spread of the clients' log-normal weights, 0 (all the same) or more"
    )

    @model_validator(mode="after")
    def _says_how_many(self) -> Partition:
        if self.kind == "classes" and self.per_client is None:
            raise ValueError("of kind 'classes' needs per_client, the classes of each experience that a client holds")
        return self


class Domain(Section):
    """domain-incremental: what the inputs look like. Domain 0 is as the source has them."""

    kind: Literal["rotation", "permutation", "corruption"] = Field(
        description="rotation: turned further each time; permutation: pixels in another fixed order; corruption: of "
        "growing strength"
    )
    angle: float = Field(90.0, gt=0, le=360, description="rotation: degrees of the last domain, in (0, 360]")
    corruption: Literal["noise", "blur", "contrast", "pixelate"] = Field(
        "noise", description="corruption: Gaussian noise, Gaussian blur, loss of contrast, or larger pixels"
    )
    severity: float = Field(
        0.5,
        gt=0,
        le=1,
        description="corruption: strength in the last domain, in (0, 1]: standard deviation of noise (1 is white "
        "minus black), variance of blur (1 is an eighth of the side, squared), part of the contrast or of 3/4 of the "
        "resolution that is lost",
    )


class Blurry(Section):
    """blurry: how much of which classes leaks into the other experiences (i-Blurry, Koh et al., ICLR 2022)."""

    disjoint: float = Field(0.5, ge=0, le=1, description="share of the classes that stay in one experience, in [0, 1]")
    blur: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="fraction of another class's training samples that is dealt over the other experiences, in (0, 1)",
    )


class Growth(Section):
    """Clients that join or leave as the stream goes on; who is drawn from the stream's seed."""

    initial: Literal["all"] | Annotated[int, Field(ge=1)] = Field(
        "all", description="clients in experience 0, 1 or more, or all"
    )
    join: int = Field(0, ge=0, description="clients that join at each following experience, until all are there")
    leave: int = Field(
        0, ge=0, description="clients that leave at each following experience, never the last one; they do not return"
    )

    def problem(self, clients: int, experiences: int) -> str | None:
        """What is wrong with it for so many clients and experiences, or None."""
        first = clients if self.initial == "all" else self.initial
        if first > clients:
            return f"growth.initial {first} is more than the {clients} clients"
        if first == clients and self.join:
            return f"growth.join {self.join}: all {clients} clients are there from the beginning; lower growth.initial"
        there = first + self.join * (experiences - 1)
        if there < clients:
            return (
                f"growth: only {there} of {clients} clients ever join (growth.initial {first}, then growth.join "
                f"{self.join} at each of {experiences - 1} experiences)"
            )
        return None
