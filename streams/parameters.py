"""The parameters of a stream: their bounds and words, from which errors, forms and documents are made."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from validation import Section

# What `source` may begin with, and what follows.
SOURCES = {"digits": "", "parquet:": "PATH", "csv:": "PATH", "folder:": "PATH", "torchvision:": "NAME"}


class Partition(Section):
    """How the samples of one class are shared out among the clients."""

    kind: Literal["iid", "dirichlet"] = Field(
        "iid", description="iid: every client gets the same share of a class; dirichlet: shares are drawn"
    )
    alpha: float = Field(
        0.5,
        gt=0,
        description="concentration of the Dirichlet distribution, above 0; 0.1 is very skewed, 100 is nearly IID",
    )
    min_share: float = Field(
        0.0, ge=0, lt=1, description="smallest share of a class that a client may get, a fraction in [0, 1)"
    )


class StreamParameters(Section):
    """One stream: a source, a scenario (which classes when) and a partition (which samples to whom)."""

    source: str = Field(
        description="'digits'; 'parquet:PATH' (images or texts), 'csv:PATH' (texts) or 'folder:PATH' (images), PATH "
        "being a file or a folder, relative to the project folder; or 'torchvision:NAME'"
    )
    image: str | None = Field(
        None,
        description="parquet only: the column of images; by default the first that is binary, a struct of bytes "
        "and path, or a list",
    )
    text: str | None = Field(
        None, description="parquet and csv: the column of texts; by default parquet has images, and csv 'text'"
    )
    label: str | None = Field(
        None, description="parquet and csv: the column of labels, integers from 0 or names; by default 'label'"
    )
    client: str | None = Field(
        None, description="parquet and csv: the column that says whose a sample is, integers or names; by default none"
    )
    length: int | None = Field(
        None, ge=4, le=65536, description="texts only: bytes that are kept of a text, 4 to 65536; by default 512"
    )
    size: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="images only: scale every image to size x size pixels, 1 to 1024; by default they stay as they are",
    )
    classes: int | None = Field(
        None,
        ge=2,
        description="number of classes, 2 or more; labels are 0..classes-1; by default the largest label + 1",
    )
    scenario: Literal["class-incremental"] = Field(
        "class-incremental", description="what changes from one experience to the next: its classes are new"
    )
    clients: int = Field(ge=1, description="number of clients, 1 or more")
    experiences: int = Field(ge=1, description="number of experiences, from 1 to the number of classes")
    order: Literal["shared", "own"] = Field(
        "shared", description="shared: all clients meet the classes in one order; own: each client in its own"
    )
    partition: Partition = Field(default_factory=Partition, description="how a class is shared out among the clients")
    public: float = Field(
        0.0, ge=0, lt=1, description="fraction of the training samples that no client ever holds, in [0, 1)"
    )
    test: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="fraction of every class held out as test where the source brings no test split, in (0, 1)",
    )
    seed: int = Field(
        0, description="seed of the class order and the partition; the experiment's own seed does not change a stream"
    )

    @field_validator("source")
    @classmethod
    def _known_source(cls, source: str) -> str:
        kind, _, rest = source.partition(":")
        if source != "digits" and not (f"{kind}:" in SOURCES and rest.strip()):
            *others, last = (repr(known + SOURCES[known]) for known in SOURCES)
            raise ValueError(f"must be {', '.join(others)} or {last}")
        return source

    @model_validator(mode="after")
    def _shares_fit(self) -> StreamParameters:
        least = self.partition.min_share
        if self.clients * least > 1:
            raise ValueError(
                f"partition.min_share {least:g} for {self.clients} clients asks for more than a whole class; "
                f"it can be at most 1/clients = {1 / self.clients:.4g}"
            )
        return self
