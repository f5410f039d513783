"""The commands of `fcl` that are about results: compare, report, claims, verify, trace."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from errors import InputError
from flows import settings

commands = typer.Typer()
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


@commands.command()
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


@commands.command()
def report(
    stream: Annotated[str | None, typer.Option(help="this stream only")] = None,
) -> None:
    """The comparison as a page: comparison/report.html and report.md, with figures, tests and every run's command."""
    from flows.report import write_report
    from parameters import project_root

    root = project_root()
    for path in write_report(root, stream):
        console.print(str(path.relative_to(root)), highlight=False, soft_wrap=True)


@commands.command()
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


@commands.command()
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


@commands.command()
def claims(
    record: Annotated[bool, typer.Option("--record", help="keep the verdicts, to be told when one is lost")] = False,
) -> None:
    """What the papers claim and what was measured. Exit status 1 where a claim once reproduced no longer is."""
    from parameters import project_root
    from report.record import findings, lost, write
    from report.terminal import to_rich

    found = findings(project_root())
    console.print(to_rich(found))
    if record:
        write(found)
    elif worse := lost(found):
        said = "; ".join(f"{each.key}: {each.verdict}, once {before}" for each, before in worse)
        raise RuntimeError(f"{said} (fcl claims --record, if this is what is to be)")
