"""`fcl`, the command line: a thin door to the flows."""

from __future__ import annotations

import atexit
import gc
import re
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli_results import commands, console, natural
from errors import InputError
from flows import settings
from flows.seeds import SideBySide
from flows.server import leave
from tasks import interruption

settings.apply()
atexit.register(gc.freeze)  # nothing is left to be found at the end, and looking for it takes 0.6 s

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Federated continual learning: run, verify and compare experiments.",
)
app.add_typer(commands)


Method = Annotated[str, typer.Argument(help="a method (fcl methods lists them)")]
Seed = Annotated[
    int, typer.Option(parser=natural, metavar="N", help="the experiment seed; all randomness derives from it")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a key of params.yaml: train.rounds=1")
]
Seeds = Annotated[
    list[int] | None,
    typer.Option(
        "--seed",
        parser=natural,
        metavar="N",
        help="the experiment seed, default 0; all randomness derives from it; several run side by side",
    ),
]
StreamName = Annotated[str, typer.Option("--stream", help="a stream of params.yaml (fcl streams lists them)")]


@app.command()
def run(
    method: Method,
    stream: StreamName,
    seed: Seeds = None,
    sets: Sets = None,
    name: Annotated[
        str | None, typer.Option(help="of a variant of METHOD: its row in the comparison, results/STREAM/NAME/seed-N")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="another place, not compared; with several seeds OUT/seed-N")] = None,
    runner: Annotated[
        str | None, typer.Option(metavar="threads|processes|dask|ray", help="where tasks compute")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="URL", help="a Dask or Ray cluster; without it, dask and ray start one for the run"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(parser=natural, metavar="N", help="tasks that compute at the same time")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where an interrupted run stopped")] = False,
) -> None:
    """Run one experiment: METHOD on a stream."""
    seeds = list(dict.fromkeys(seed or [0]))
    with SideBySide() if len(seeds) > 1 else nullcontext() as side_by_side:
        with settings.importing():
            from flows.conduct import conduct
            from parameters import experiment, project_root
            from tasks.run import check_out

        root = project_root()
        specs = [
            experiment(method, stream, each, sets or [], root, runner=runner, address=address, workers=workers)
            for each in seeds
        ]
        if name is not None and (out or name in (".", "..", "") or not re.fullmatch(r"[\w.-]+", name)):
            raise InputError(f"--name: expected letters, digits and _ . - and no --out beside it (got '{name}')")
        usual = root / "results" / stream / (name or method)
        if len(specs) == 1:
            conduct(specs[0], root, out.resolve() if out else usual / f"seed-{seeds[0]}", resume, console)
            return
        place = out.resolve() if out else usual
        for spec in specs:
            check_out(place / f"seed-{spec.seed}", spec)
        at_once = min(len(seeds), specs[0].run.workers + 1)  # one more: each waits now and then, and three are usual
        common = ["run", method, "--stream", stream, *(part for each in sets or [] for part in ("--set", each))]
        common += ["--runner", runner] * bool(runner) + ["--address", address] * bool(address) + ["--resume"] * resume
        common += ["--workers", str(max(1, specs[0].run.workers // at_once))]
        commands = {each: [*common, "--seed", str(each), "--out", str(place / f"seed-{each}")] for each in seeds}
        side_by_side.run(commands, at_once, console)


@app.command()
def serve(
    limit: Annotated[int, typer.Option(parser=natural, metavar="N", help="runs at the same time")] = 1,
) -> None:
    """Prefect, MLflow, a work pool with a worker, and the deployments of prefect.yaml, until Ctrl-C."""
    from flows.serve import serve as bring_up
    from parameters import project_root

    bring_up(project_root(), limit)


@app.command()
def submit(
    method: Method,
    stream: StreamName,
    seed: Seed = 0,
    sets: Sets = None,
    out: Annotated[str, typer.Option(help="below the project's folder; default: results/STREAM/METHOD/seed-N")] = "",
    deployment: Annotated[str, typer.Option(metavar="NAME", help="of flow experiment in prefect.yaml")] = "default",
) -> None:
    """Queue one experiment for a worker and print its address in the Prefect UI."""
    from flows.submission import Order, submit
    from parameters import project_root

    queued = submit(Order(method, stream, seed, sets=sets or [], out=out), project_root(), deployment)
    console.print(f"queued: {queued.title}\n{queued.address}", highlight=False, soft_wrap=True)


@app.command()
def stream(
    name: Annotated[str, typer.Argument(metavar="STREAM", help="a stream of params.yaml")],
    plot: Annotated[Path | None, typer.Option(help="draw clients x classes for each experience into this PNG")] = None,
) -> None:
    """Build (if needed) and describe a stream: clients x experiences x classes, sizes."""
    from flows.stream_table import print_stream
    from parameters import project_root, read, stream_parameters
    from streams.stream import build

    root = project_root()
    built = build(name, stream_parameters(read(root), name), root)
    print_stream(built, console)
    if plot:
        from streams.picture import draw

        try:
            draw(built, plot)
        except OSError as error:
            raise InputError(f"--plot {plot}: cannot be written ({error.strerror}); expected a file's path") from None
        console.print(f"drawn into {plot}")


@app.command()
def foundation(
    name: Annotated[str, typer.Argument(metavar="STREAM", help="a stream of params.yaml")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="a key of foundation or streams: foundation.seed=1"),
    ] = None,
) -> None:
    """Make (if needed) and describe the foundation model of a stream, and register it in MLflow."""
    with settings.importing():
        from flows.foundation import prepare
        from parameters import project_root

    prepare(name, project_root(), console, sets or [])


@app.command()
def methods() -> None:
    """The methods there are, one line each."""
    from methods import get, names

    for name in names():
        console.print(f"[bold]{name:12}[/] {get(name).summary}", highlight=False, soft_wrap=True)


@app.command()
def streams() -> None:
    """The streams of params.yaml, one line each."""
    from parameters import project_root, read, stream_parameters

    params = read(project_root())
    width = max(map(len, params["streams"]), default=0)
    for name in params["streams"]:
        about = stream_parameters(params, name)
        said = [about.source, about.scenario, f"{about.clients} clients", f"{about.experiences} experiences"]
        alpha = f" {about.partition.alpha:g}" if about.partition.kind == "dirichlet" else ""
        said.append(about.partition.kind + alpha)
        if about.domain:
            said.append(about.domain.corruption if about.domain.kind == "corruption" else about.domain.kind)
        if about.multitask:
            said += [f"tasks {' '.join(about.multitask.tasks)}", f"{len(about.multitask.patterns)} patterns"]
        said += [f"{about.private} private classes"] * bool(about.private) + ["own order"] * (about.order == "own")
        said += ["growing"] * bool(about.growth) + [f"lag {about.lag:g}"] * bool(about.lag)
        console.print(f"[bold]{name:{width}}[/] {', '.join(said)}", highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point. Exit status: 0 done, 1 failed while running, 2 the user's input is wrong."""
    with suppress(ValueError):  # not in the main thread: a test
        interruption.listen()  # a batch system's SIGTERM is as orderly an end as Ctrl-C
    try:
        if app(standalone_mode=False) == 130:  # Typer's word for Ctrl-C
            raise KeyboardInterrupt
        interruption.heed()
    except InputError as error:
        fail(2, str(error))
    except typer.Abort:
        fail(1, "interrupted")
    except KeyboardInterrupt:
        fail(1, "interrupted; repeat the command with --resume to go on from the last finished round")
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors: an unknown option, a missing argument
            if not error.format_message():  # `fcl` alone has printed its help
                sys.exit(2)
            fail(2, error.format_message())
        fail(1, f"{type(error).__name__}: {error}")
    leave(0)


def fail(status: int, message: str) -> None:
    Console(stderr=True).print("error: " + " ".join(message.split()), markup=False, highlight=False, soft_wrap=True)
    leave(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
