"""The section `run` of params.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, ValidationInfo, field_validator

from errors import InputError
from validation import Section, checked

ADDRESSES = {"dask": r"(tcp|tls)://.+:\d+", "ray": r"auto|ray://.+:\d+"}
EXAMPLES = {"dask": "tcp://HOST:8786", "ray": "ray://HOST:10001 or auto"}
SECRET = re.compile("key|secret|token|password|credential|signature|sas", re.IGNORECASE)


class RunParameters(Section):
    """The `run` section: how the work is done. Nothing in it changes a result."""

    runner: Literal["threads", "processes", "dask", "ray"] = Field("threads", description="where tasks compute")
    address: str = Field(
        "", description="the Dask or Ray cluster that computes; empty: one is started here and ends with the run"
    )
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


def run_parameters(values: Any) -> RunParameters:
    """The section `run`, checked, also where one key depends on another.

    Raises:
        InputError: a value is out of range, an address is not the runner's, or the store's URL holds a secret.
    """
    if isinstance(values, Mapping):
        refuse_secrets(values.get("store"))  # first: a message about something else may quote the URL
    found = checked(RunParameters, values, "run")
    if not found.address:
        return found
    if found.runner not in ADDRESSES:
        raise InputError(
            f"run.address: expected nothing, since run.runner is {found.runner}, which has no cluster (got "
            f"'{found.address}')"
        )
    if not re.fullmatch(ADDRESSES[found.runner], found.address):
        raise InputError(
            f"run.address: expected {EXAMPLES[found.runner]} for run.runner {found.runner} (got '{found.address}')"
        )
    return found


def refuse_secrets(url: Any) -> None:
    """Refuses a store's URL with a user, a password or a key in it, without repeating it: URLs are recorded.

    Raises:
        InputError: there is one.
    """
    for part in url.split("::") if isinstance(url, str) else ():  # fsspec chains URLs with `::`
        scheme, separator, rest = part.partition("://")
        about = urlsplit(part) if separator else None
        # An AWS secret may hold a `/`, after which a URL's user and password are over: hence any `:` before an `@`.
        if about and (
            "@" in about.netloc
            or ":" in rest.rpartition("@")[0]
            or any(SECRET.search(name) for name, _ in parse_qsl(about.query))
        ):
            raise InputError(
                f"run.store: expected a URL without credentials (got {scheme}://... with some); give them in the "
                "environment, for S3 as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
