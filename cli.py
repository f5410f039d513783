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
    out: Annotated[
        Path | None, typer.Option(help="default: results/STREAM/METHOD/seed-N; with several seeds OUT/seed-N")
    ] = None,
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

    root, seeds = project_root(), list(dict.fromkeys(seed or [0]))
    specs = [
        experiment(method, stream, each, sets or [], root, runner=runner, address=address, workers=workers)
        for each in seeds
    ]
    if len(specs) == 1:
        place = out.resolve() if out else root / "results" / stream / method / f"seed-{seeds[0]}"
        conduct(specs[0], root, place, resume, console)
        return
    from flows.seeds import run_seeds

    place = out.resolve() if out else root / "results" / stream / method
    at_once = min(len(seeds), specs[0].run.workers)
    common = ["run", method, "--stream", stream, *(part for each in sets or [] for part in ("--set", each))]
    common += ["--runner", runner] * bool(runner) + ["--address", address] * bool(address) + ["--resume"] * resume
    common += ["--workers", str(specs[0].run.workers // at_once)]
    commands = {each: [*common, "--seed", str(each), "--out", str(place / f"seed-{each}")] for each in seeds}
    run_seeds(commands, at_once, console)


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
def compare(
    stream: Annotated[str | None, typer.Option(help="this stream only")] = None,
    source: Annotated[
        str,
        typer.Option("--from", metavar="results|mlflow", help="mlflow: also runs of others, and those with an --out"),
    ] = "results",
) -> None:
    """The comparison table over results/, and where methods were measured over simulated time, their speed-ups."""
    from metrics.comparison import collect, table, to_rich
    from metrics.task_measures import task_rows
    from metrics.task_measures import to_rich as tasks_to_rich
    from metrics.time_comparison import over_time
    from metrics.time_comparison import to_rich as times_to_rich
    from parameters import project_root

    if source not in ("results", "mlflow"):
        raise InputError(f"--from: expected results or mlflow (got '{source}')")
    root, notes = project_root(), []
    if source == "mlflow":
        with settings.importing():
            from flows.tracked import tracked

        runs, times, notes = tracked(root, stream)
    else:
        runs = collect(root / "results", stream)
        times = over_time(root / "results", runs)
    summary = table(runs)
    console.print(to_rich(summary))
    for name, of_stream in summary.groupby(level="stream"):
        header, rows = task_rows(of_stream.dropna(axis="columns", how="all"))
        if rows:
            console.print(tasks_to_rich(name, header, rows))
    for compared in times:
        console.print(times_to_rich(compared))
    for note in notes:
        console.print(f"[yellow]note:[/] {note}", highlight=False, soft_wrap=True)


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
def verify(
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="a folder of results")] = None,
    everything: Annotated[bool, typer.Option("--all", help="all of results/, one after the other")] = False,
    stream: Annotated[str | None, typer.Option(help="with --all: this stream only")] = None,
    sample: Annotated[
        int | None, typer.Option(parser=natural, metavar="N", help="with --all: so many, drawn at random")
    ] = None,
    seed: Annotated[int, typer.Option(parser=natural, metavar="N", help="with --sample: names the draw")] = 0,
) -> None:
    """Run DIR's experiment again, or all of results/, and compare digests, tables and metrics."""
    if (folder is None) != everything:
        raise InputError("verify: expected a folder of results, or --all instead of one")
    if folder and (stream is not None or sample is not None):
        raise InputError("verify DIR: --stream and --sample go with --all")
    with settings.importing():
        from flows.verification import verify as run_again
        from flows.verification import verify_all
        from parameters import project_root

    try:
        if folder:
            run_again(folder, project_root(), console)
        else:
            verify_all(project_root(), console, stream, sample, seed)
    except KeyboardInterrupt:
        raise typer.Abort() from None  # there is nothing to resume


@app.command()
def trace(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="a result, figure, table, model or built stream")],
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
    cite: Annotated[bool, typer.Option("--cite", help="as a BibTeX entry")] = False,
) -> None:
    """Where FILE comes from: run, command, commit, parameters, stream, dvc.lock, Prefect and MLflow runs."""
    import json

    with settings.importing():
        from flows.chain import bibtex, lines
        from flows.trace import trace as follow
        from parameters import project_root

    home = next((folder for folder in path.resolve().parents if (folder / "params.yaml").is_file()), None)
    chain = follow(path, home or project_root())
    if as_json or cite:
        print(json.dumps(chain, indent=1, sort_keys=True) if as_json else bibtex(chain))
        return
    for label, text in lines(chain):
        console.print(f"{label:20}{text}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def claims(
    record: Annotated[bool, typer.Option("--record", help="keep the verdicts, to be told when one is lost")] = False,
) -> None:
    """What the papers claim and what was measured. Exit status 1 where a claim once reproduced no longer is."""
    from parameters import project_root
    from report.record import findings, lost, write
    from report.terminal import to_rich
    from tasks.results import git

    root = project_root()
    found = findings(root)
    console.print(to_rich(found))
    if record:
        write(found, (git(root, "rev-parse", "HEAD") or "")[:7])
    elif worse := lost(found):
        said = "; ".join(f"{each.key}: {each.verdict}, once {before}" for each, before in worse)
        raise RuntimeError(f"{said} (fcl claims --record, if this is what is to be)")


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
