"""The flows that a Prefect server queues for its workers: one experiment, a sweep of experiments, the comparison.

`prefect.yaml` deploys them. Each is a thin door to what the command line calls; its parameters are the form that the UI
shows. A run of the experiment always resumes: the same experiment queued or retried goes on from its last finished
round, and one that is finished says so.
"""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from pydantic import Field, WithJsonSchema
from rich.console import Console

from errors import InputError
from parameters import project_root

from . import settings
from .forms import Forms
from .resumption import marked
from .submission import Order, place, queue

settings.apply()
FORMS = Forms()
# Defaults below are empty, not None, since the form sends what it shows; nothing changes them.

Seed = Annotated[int, Field(ge=0)]


@flow(name="experiment", flow_run_name="{method} on {stream}, seed {seed}", validate_parameters=False)
def experiment(
    method: Annotated[str, WithJsonSchema(FORMS.method)],
    stream: Annotated[str, WithJsonSchema(FORMS.stream)],
    seed: Seed = 0,
    method_parameters: Annotated[dict[str, Any], WithJsonSchema(FORMS.method_parameters)] = {},  # noqa: B006
    train: Annotated[dict[str, Any], WithJsonSchema(FORMS.train)] = {},  # noqa: B006
    run: Annotated[dict[str, Any], WithJsonSchema(FORMS.run)] = {},  # noqa: B006
    sets: list[str] = [],  # noqa: B006
    out: str = "",
) -> State:
    """One method on one stream, as `fcl run METHOD --stream STREAM`.

    Args:
        seed: the experiment seed; all randomness derives from it
        sets: any other key of params.yaml, as KEY=VALUE; for example streams.digits.clients=10 or model.name=mlp
        out: folder of the results, below the project's; empty: results/STREAM/METHOD/seed-N
    """
    from tasks.run import finished_results

    from .conduct import conduct
    from .page import show

    root = project_root()
    console = Console(width=1000)  # a line of the log is not wrapped
    try:
        order = Order(method, stream, seed, method_parameters, train, run, sets, out)
        spec, results = order.experiment(root), place(order, root)
        finished = finished_results(results)
        with marked(root, runtime.flow_run.id), console.capture() as said:
            conduct(spec, root, results, resume=True, console=console)
    except InputError as error:
        return Failed(message=str(error), name="Refused")
    if finished:
        show(spec, results, root, UUID(runtime.flow_run.id))
    lines = said.get().replace(f"{root}/", "").splitlines()
    for line in lines:
        get_run_logger().info(line)
    return Completed(message=lines[-1])


def title() -> str:
    """A sweep's or a comparison's name in the UI, from its lists of parameters."""
    given = {
        name: ", ".join(map(str, value))
        for name, value in runtime.flow_run.parameters.items()
        if isinstance(value, list)
    }
    if "methods" not in given:
        return f"comparison on {given['streams']}"
    return f"{given['methods']} on {given['streams']}, seeds {given['seeds']}"


@flow(name="sweep", flow_run_name=title, validate_parameters=False)
def sweep(
    methods: Annotated[list[str], WithJsonSchema({"type": "array", "items": FORMS.method})],
    streams: Annotated[list[str], WithJsonSchema({"type": "array", "items": FORMS.stream})],
    seeds: list[Seed] = [0, 1, 2],  # noqa: B006
    train: Annotated[dict[str, Any], WithJsonSchema(FORMS.train)] = {},  # noqa: B006
    run: Annotated[dict[str, Any], WithJsonSchema(FORMS.run)] = {},  # noqa: B006
    sets: list[str] = [],  # noqa: B006
    out: str = "results",
    deployment: str = "default",
) -> State:
    """Queues every method on every stream with every seed, or none where one of them is wrong; does not wait for them.

    Args:
        methods: `fcl methods` says what each is
        streams: `fcl streams` says what each is
        seeds: experiment seeds
        sets: any other key of params.yaml, as KEY=VALUE, for all experiments
        out: folder below the project's that gets STREAM/METHOD/seed-N
        deployment: of the flow experiment, whose runs these are: default or gpu
    """
    root = project_root()
    orders = [
        Order(method, stream, seed, {}, train, run, sets, f"{out}/{stream}/{method}/seed-{seed}")
        for stream in streams
        for method in methods
        for seed in seeds
    ]
    try:
        for order in orders:
            order.check(root)
        queued = [queue(order, deployment, [f"sweep {runtime.flow_run.id[:8]}"]) for order in orders]
    except InputError as error:
        return Failed(message=str(error), name="Refused")
    lines = [f"- [{each.title}]({each.address})" for each in queued]
    create_markdown_artifact("\n".join(lines), key="sweep", description=f"{len(lines)} experiments")
    return Completed(message=f"{len(lines)} experiments are queued")


@flow(name="comparison", flow_run_name=title, validate_parameters=False)
def comparison(
    streams: Annotated[list[str], WithJsonSchema({"type": "array", "items": FORMS.stream})],
) -> State:
    """Compares the methods that have results on each stream, as the last stage of `dvc repro`, into comparison/.

    Args:
        streams: `fcl streams` says what each is
    """
    from .comparison import compare
    from .page import figure, key_of

    root = project_root()
    try:
        for stream in streams:
            compare(stream, root)
            folder = root / "comparison" / stream
            table, picture = (folder / "table.md").read_text(), figure(folder / "accuracy.png")
            page = f"# {stream}\n\n{table}\n![average accuracy so far]({picture})\n"
            create_markdown_artifact(page, key=key_of("comparison", stream), description=f"the methods on {stream}")
    except InputError as error:
        return Failed(message=str(error), name="Refused")
    return Completed(message=f"comparison/ has {', '.join(streams)}")
