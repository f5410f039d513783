"""`fcl`, the command line: a thin door to the flows."""

from __future__ import annotations

import atexit
import gc
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from errors import InputError
from flows import settings
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
console = Console(width=None if sys.stdout.isatty() else 120)


def natural(text: str | int) -> int:
    """A whole number of at least 0."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise typer.BadParameter(f"expected a whole number, 0 or more (got '{text}')")
    return number


Method = Annotated[str, typer.Argument(help="a method (fcl methods lists them)")]
Seed = Annotated[
    int, typer.Option(parser=natural, metavar="N", help="the experiment seed; all randomness derives from it")
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="a key of params.yaml: train.rounds=1")
]
StreamName = Annotated[str, typer.Option("--stream", help="a stream of params.yaml (fcl streams lists them)")]


@app.command()
def run(
    method: Method,
    stream: StreamName,
    seed: Seed = 0,
    sets: Sets = None,
    out: Annotated[Path | None, typer.Option(help="default: results/STREAM/METHOD/seed-N")] = None,
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
    with settings.importing():
        from flows.conduct import conduct
        from parameters import experiment, project_root

    root = project_root()
    spec = experiment(method, stream, seed, sets or [], root, runner=runner, address=address, workers=workers)
    place = out.resolve() if out else root / "results" / stream / method / f"seed-{seed}"
    conduct(spec, root, place, resume, console)


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
    from parameters import project_root, read, stream_parameters
    from streams.stream import build

    root = project_root()
    built = build(name, stream_parameters(read(root), name), root)
    print_stream(built)
    if plot:
        from streams.picture import draw

        try:
            draw(built, plot)
        except OSError as error:
            raise InputError(f"--plot {plot}: cannot be written ({error.strerror}); expected a file's path") from None
        console.print(f"drawn into {plot}")


MOST_LINES = 120  # of clients and experiences; a longer stream is summed up


def print_stream(built) -> None:
    """The stream in words, then a line per client and experience, or per experience where these would be many."""
    from rich.table import Table

    size = " x ".join(map(str, built.shape))
    samples = f"images ({size})" if built.modality == "image" else f"{built.modality}s of {size} bytes"
    tasks = (
        f"{len(built.layout.tasks)} tasks with {built.classes} labels" if built.layout else f"{built.classes} classes"
    )
    console.print(
        f"[bold]{built.name}[/]: {len(built.inputs)} {samples}, {tasks}, "
        f"{built.clients} clients, {built.experiences} experiences, {len(built.public())} public samples"
    )
    console.print(f"digest {built.digest}", highlight=False)
    for task in built.layout.tasks if built.layout else ():
        labels = f", labels {task.first} to {task.labels[-1]}" if task.classes > 1 else f", label {task.first}"
        console.print(f"task {task.name}: {' and '.join(task.modalities)} -> {task.target}{labels}", highlight=False)
    if built.clients * built.experiences > MOST_LINES:
        console.print("training samples of a client: fewest, median, most; train, test: of all clients together")
        about = built.summary().reset_index()
    else:
        about = built.describe().reset_index()
        if "classes" in about:
            about["classes"] = [row if len(row) <= 10 else f"{len(row)} classes" for row in about["classes"]]
    table = Table(*[str(column) for column in about.columns])
    for row in about.itertuples(index=False):
        table.add_row(*map(str, row))
    console.print(table)


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
def compare(
    stream: Annotated[str | None, typer.Option(help="this stream only")] = None,
) -> None:
    """The comparison table over results/, and where methods were measured over simulated time, their speed-ups."""
    from metrics.comparison import collect, table, to_rich
    from metrics.task_measures import task_rows
    from metrics.task_measures import to_rich as tasks_to_rich
    from metrics.time_comparison import over_time
    from metrics.time_comparison import to_rich as times_to_rich
    from parameters import project_root

    results = project_root() / "results"
    runs = collect(results, stream)
    summary = table(runs)
    console.print(to_rich(summary))
    for name, of_stream in summary.groupby(level="stream"):
        header, rows = task_rows(of_stream.dropna(axis="columns", how="all"))
        if rows:
            console.print(tasks_to_rich(name, header, rows))
    for compared in over_time(results, runs):
        console.print(times_to_rich(compared))


@app.command()
def report(
    stream: Annotated[str | None, typer.Option(help="this stream only")] = None,
) -> None:
    """The comparison as a page: comparison/report.html and report.md, with figures, tests and every run's command."""
    from flows.report import write_report
    from parameters import project_root

    root = project_root()
    for path in write_report(root, stream):
        console.print(str(path.relative_to(root)), highlight=False, soft_wrap=True)


@app.command()
def verify(folder: Annotated[Path, typer.Argument(metavar="DIR", help="a folder of results")]) -> None:
    """Run DIR's experiment again and compare digests."""
    from flows.conduct import verify as run_again
    from parameters import project_root

    run_again(folder, project_root(), console)


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
