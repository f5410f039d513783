"""The section `run` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from validation import Section


class RunParameters(Section):
    """The `run` section: how the work is done. Nothing in it changes a result."""

    runner: Literal["threads", "processes"] = Field("threads", description="where tasks compute")
    workers: int = Field(2, ge=1, description="tasks that compute at the same time")
    device: str = Field("auto", description="auto (a GPU where there is one), cpu, cuda or cuda:N")
    min_clients: int = Field(1, ge=0, description="admitted uploads that a round needs to go on")
    retries: int = Field(2, ge=0, description="times that a failed client or fusion job is tried again")
    timeout: Annotated[float, Field(gt=0)] | None = Field(
        None, description="seconds that a client may take before it counts as failed"
    )
    cohort: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="clients that travel in one task; auto sizes it from their measured time"
    )
    save_every: float = Field(
        30.0,
        ge=0,
        description="seconds after which a long fusion job keeps what it has done, to go on from after a kill",
    )
    course: bool = Field(False, description="also measure the server's main model after every round")
    upload_limit: int = Field(1024, ge=1, description="largest upload that is admitted, MiB")
    store: str = Field("runs", description="where uploads and checkpoints lie: a folder or an fsspec URL")
    store_patience: float = Field(
        60.0, ge=0, description="seconds for which a store that fails is tried again before the run stops"
    )
    tracking_patience: float = Field(
        20.0, ge=0, description="seconds that a finished run waits for MLflow before its records are kept for later"
    )
    resume_mismatch: Literal["refuse", "restart"] = Field(
        "refuse", description="what --resume does with an interrupted run of other parameters"
    )

    @field_validator("timeout")
    @classmethod
    def _needs_processes(cls, value: float | None, info: ValidationInfo) -> float | None:
        runner = info.data.get("runner", "processes")  # absent: what was given is wrong and said already
        if value is not None and runner != "processes":
            raise ValueError(f"must be null with runner {runner}: only a process can be ended, choose runner processes")
        return value
