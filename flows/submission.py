"""Experiments on their way to a Prefect server: checked here, run by whichever worker is free (`fcl submit`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

import parameters
from errors import InputError
from parameters import Experiment

from .services import address_file, answers

END = "\n...\n"  # what YAML writes after a value that stands alone


@dataclass(frozen=True)
class Order:
    """One experiment as a form or a command line asks for it: the parameters of the deployed flow.

    Attributes:
        method_parameters, train, run: what is given of these sections; the others' values are those of params.yaml.
        sets: KEY=VALUE, as `fcl run --set`; they win over the sections.
        out: folder of the results below the project's folder; empty: results/STREAM/METHOD/seed-N.
    """

    method: str
    stream: str
    seed: int = 0
    method_parameters: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    sets: Sequence[str] = ()
    out: str = ""

    @property
    def title(self) -> str:
        return f"{self.method} on {self.stream}, seed {self.seed}"

    def experiment(self, root: Path) -> Experiment:
        """The checked experiment.

        Raises:
            InputError: anything unknown, out of range, of the wrong type, or that does not go together.
        """
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise InputError(f"seed: expected a whole number, 0 or more (got {self.seed!r})")
        given = {f"methods.{self.method}": self.method_parameters, "train": self.train, "run": self.run}
        sets = [text for prefix, section in given.items() for text in assignments(prefix, section)]
        return parameters.experiment(self.method, self.stream, self.seed, [*sets, *self.sets], root)

    def check(self, root: Path) -> None:
        """Raises InputError where a run of this would be refused."""
        from tasks.run import check_out

        check_out(place(self, root), self.experiment(root))


def assignments(prefix: str, section: Mapping[str, Any]) -> list[str]:
    """{"rounds": 1} below "train" as ["train.rounds=1"]; values are written as YAML, which `--set` reads."""
    found = []
    for name, value in section.items():
        key = f"{prefix}.{name}"
        if isinstance(value, Mapping):
            found += assignments(key, value)
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
            found.append(f"{key}={text.partition(END)[0].strip()}")
    return found


def place(order: Order, root: Path) -> Path:
    """The folder of the results.

    Raises:
        InputError: it is not below the project's folder, which is all that somebody with access to the UI may write to.
    """
    inner = PurePosixPath(order.out or f"results/{order.stream}/{order.method}/seed-{order.seed}")
    if inner.is_absolute() or ".." in inner.parts or inner == PurePosixPath("."):
        raise InputError(f"out: expected a folder below the project's, such as results/try-1 (got '{order.out}')")
    return root / inner


@dataclass(frozen=True)
class Queued:
    """A flow run that waits for a worker: its id, and its address in the UI."""

    title: str
    id: str
    address: str


def queue(order: Order, deployment: str, tags: Sequence[str] = ()) -> Queued:
    """Queues an experiment; returns at once.

    Args:
        order: what to run.
        deployment: of the flow `experiment` in prefect.yaml.
        tags: shown in the UI, beside the method, the stream and the deployment's own.
    Raises:
        InputError: there is no such deployment on the server, or the server refuses the parameters.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
    from prefect.settings import get_current_settings

    name = f"experiment/{deployment}"
    given = {key: value for key, value in asdict(order).items() if value not in ({}, [], (), "")}
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(name)
            run = client.create_flow_run_from_deployment(
                found.id, parameters=given, name=order.title, tags=[*found.tags, order.method, order.stream, *tags]
            )
        except ObjectNotFound:
            where = client.api_url
            raise InputError(f"no deployment {name} on {where}; run `prefect deploy --all` in this folder") from None
        except PrefectHTTPStatusError as error:
            raise InputError(f"the server refuses the run: {error.response.json().get('detail')}") from None
        ui = (get_current_settings().ui_url or str(client.api_url).removesuffix("/api/")).rstrip("/")
    return Queued(order.title, str(run.id), f"{ui}/v2/runs/flow-run/{run.id}")


def submit(order: Order, root: Path, deployment: str) -> Queued:
    """Checks an experiment and queues it on the server that is configured, or that `fcl serve` runs for the project.

    Raises:
        InputError: the experiment is refused; no server can be reached.
    """
    order.check(root)
    address = server(root)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: address}):
        return queue(order, deployment)


def server(root: Path) -> str:
    """The address of the Prefect API: PREFECT_API_URL or Prefect's profile, else that of `fcl serve` in `root`.

    Raises:
        InputError: none is known, or it does not answer.
    """
    from prefect.settings import get_current_settings

    running = address_file(root)
    address = get_current_settings().api.url
    if not address and running.exists():
        address = json.loads(running.read_text())["prefect"]
    what = "run `fcl serve`, or set PREFECT_API_URL to the server's address, such as http://HOST:4200/api"
    if not address:
        raise InputError(f"no Prefect server is known; {what}")
    if not answers(f"{address}/health"):
        raise InputError(f"the Prefect server {address} does not answer; {what}")
    return address
