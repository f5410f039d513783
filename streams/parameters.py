"""The parameters of a stream: their bounds and words, from which errors, forms and documents are made."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from streams.sections import Blurry, Domain, Growth, Partition
from streams.task_section import MultiTask
from validation import Section

# What `source` may begin with, and what follows.
SOURCES = {"digits": "", "parquet:": "PATH", "csv:": "PATH", "folder:": "PATH", "torchvision:": "NAME", "tasks": ""}
# Keys that have no meaning where clients have tasks of their own.
NOT_WITH_TASKS = {
    "classes": "the tasks say how many labels there are",
    "order": "a pattern is the order of its tasks",
    "private": "patterns say what belongs to whom",
    "growth": "a task would come to a client that is absent",
    "public": "an image is shown in several tasks, so that it would be public in one and a client's in another",
}


class StreamParameters(Section):
    """One stream: a source, a scenario (which classes when) and a partition (which samples to whom)."""

    source: str = Field(
        description="'digits'; 'parquet:PATH' (images or texts), 'csv:PATH' (texts) or 'folder:PATH' (images), PATH "
        "being a file or a folder, relative to the project folder; 'torchvision:NAME'; or 'tasks', see multitask"
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
    scenario: Literal[
        "class-incremental", "task-incremental", "domain-incremental", "blurry", "self-centred", "multi-task"
    ] = Field(
        "class-incremental",
        description="what changes from one experience to the next: class-incremental: its classes are new; "
        "task-incremental: so they are, and a test sample's experience is known; domain-incremental: the inputs look "
        "different; blurry: some classes leak into other experiences; self-centred: clients have classes of their own; "
        "multi-task: clients have tasks and modalities of their own, which come one after another",
    )
    clients: int = Field(ge=1, description="number of clients, 1 or more")
    experiences: int = Field(
        ge=1, description="number of experiences, 1 or more; where they bring classes, at most as many as a client's"
    )
    order: Literal["shared", "own"] = Field(
        "shared", description="shared: all clients meet the classes (domains) in one order; own: each in its own"
    )
    private: int = Field(
        0,
        ge=0,
        description="classes that belong to each client alone, 0 or more; all others are met by all clients; with "
        "scenario self-centred, 0 stands for as many as possible",
    )
    arrival: Literal["together", "round-robin", "random"] = Field(
        "together",
        description="self-centred: who trains in an experience: together: all clients; round-robin: one client after "
        "another; random: one client, drawn, each as often as in turn",
    )
    domain: Domain | None = Field(None, description="domain-incremental: what the inputs look like")
    overlap: bool = Field(
        False, description="domain-incremental: every experience shows all samples of a client again, in its domain"
    )
    blurry: Blurry | None = Field(None, description="scenario blurry: how much of which classes leaks")
    multitask: MultiTask | None = Field(None, description="source tasks: the tasks, and which client has which")
    lag: float = Field(
        0.0, ge=0, le=1, description="how late the last clients may be, in experiences, from 0 (all in step) to 1"
    )
    growth: Growth | None = Field(None, description="clients that join or leave; by default all stay")
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
        problem = _unknown(source, *SOURCES)
        if problem:
            raise ValueError(problem)
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

    @model_validator(mode="after")
    def _sections_fit(self) -> StreamParameters:
        domains = self.scenario == "domain-incremental"
        if domains and self.domain is None:
            raise ValueError("scenario 'domain-incremental' needs the section domain (kind: rotation, ...)")
        for name, scenario in (("domain", "domain-incremental"), ("overlap", "domain-incremental"), ("blurry",) * 2):
            if getattr(self, name) and self.scenario != scenario:
                raise ValueError(f"{name} is for scenario {scenario!r} only (scenario is {self.scenario!r})")
        if self.arrival != "together":
            if self.scenario != "self-centred":
                raise ValueError(f"arrival {self.arrival} is for scenario 'self-centred' only (got {self.scenario!r})")
            if self.growth or self.lag:
                raise ValueError(f"arrival {self.arrival} says who is there when: it goes with neither growth nor lag")
            if self.experiences < self.clients:
                raise ValueError(
                    f"arrival {self.arrival}: one client arrives in an experience, so that {self.clients} clients need "
                    f"as many experiences or more (got experiences {self.experiences})"
                )
        if self.private and domains:
            raise ValueError("private classes need a scenario whose experiences bring classes, not domain-incremental")
        problem = self.growth.problem(self.clients, self.experiences) if self.growth else None
        if problem:
            raise ValueError(problem)
        if self.partition.kind == "natural":
            if self.private or self.scenario == "self-centred":
                raise ValueError("partition natural: the source says who holds a class, so no classes can be private")
            if self.growth and self.order == "shared" and not domains:
                raise ValueError(
                    "partition natural with growth needs order own: in a shared order a client's samples of the "
                    "classes that come while it is absent would belong to nobody"
                )
        return self

    @model_validator(mode="after")
    def _tasks_fit(self) -> StreamParameters:
        there = {
            "source 'tasks'": self.source == "tasks",
            "scenario 'multi-task'": self.scenario == "multi-task",
            "the section multitask": self.multitask is not None,
        }
        if not any(there.values()):
            return self
        if not all(there.values()):
            given, missing = ([key for key, is_set in there.items() if is_set == wanted] for wanted in (True, False))
            raise ValueError(
                f"{' and '.join(given)} go{'es' if len(given) == 1 else ''} with {' and '.join(missing)} only "
                f"(source is {self.source!r}, scenario {self.scenario!r})"
            )
        about = self.multitask
        for key in ("images", "texts"):
            kinds = [known for known in SOURCES if known != "tasks"]
            problem = getattr(about, key) and _unknown(getattr(about, key), *kinds)
            if problem:
                raise ValueError(f"multitask.{key} {problem} (got {getattr(about, key)!r})")
        problem = about.problem(self.clients, self.experiences)
        if problem:
            raise ValueError(problem)
        for key, why in NOT_WITH_TASKS.items():
            value = getattr(self, key)
            if value != type(self).model_fields[key].get_default():
                raise ValueError(f"{key} {value} does not go with scenario 'multi-task': {why}")
        if self.partition.kind in ("natural", "classes"):
            raise ValueError(
                f"partition {self.partition.kind} does not go with scenario 'multi-task': patterns say who holds what; "
                "use iid, dirichlet or quantity"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_later_sections(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A section that came after the first digests is part of a digest only where it is used.
        return {key: value for key, value in handler(self).items() if key != "multitask" or value is not None}


def _unknown(source: str, *known: str) -> str | None:
    """What a source must be, if it is none of the `known` kinds."""
    kind, colon, rest = source.partition(":")
    if f"{kind}{colon}" in known and bool(rest.strip()) == bool(colon):
        return None
    *others, last = (repr(name + SOURCES[name]) for name in known)
    return f"must be {', '.join(others)} or {last}"
