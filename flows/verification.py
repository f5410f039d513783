"""`fcl verify`: a finished experiment is run again, elsewhere, and must come out the same; one, or all of results/.

Neither results/ nor runs/ (but for a foundation model's lock file) nor MLflow hears of it. A stream or foundation model
that is not in built/ is made there, as for any run.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd
from rich.console import Console

from errors import InputError
from parameters import Experiment, read
from randomness import numpy_generator
from run_parameters import run_parameters
from streams.parameters import StreamParameters
from tasks.results import read_json
from tasks.run import Run, finished_results

from .conduct import play, progress_bar
from .server import prefect_server

TIMED = {"client_seconds", "simulated_seconds"}  # metrics that depend on the machine's load
TABLES = ("accuracy_matrix.parquet", "rounds.parquet")  # that every run has
UNEQUAL = ("seconds", "reason")  # columns: how long a client took, and the text of a failure that did not count
SAME, DIFFERS, FAILED = "same", "differs", "could not be run"


class NotReproduced(RuntimeError):
    """A result came out otherwise when it was run again, or could not be run."""


def verify(folder: Path, root: Path, console: Console) -> None:
    """Runs the experiment that `folder` holds again and compares.

    Raises:
        InputError: `folder` holds no results.
        NotReproduced: the digests of the final states, or what the tables say, differ.
    """
    digest, differences = repeat(folder, root, console)
    if differences:
        raise NotReproduced(f"{folder} is not reproduced: {'; '.join(differences)}")
    console.print(f"verified: {folder} has the digest {digest} again", highlight=False, soft_wrap=True)


def verify_all(
    root: Path, console: Console, stream: str | None = None, sample: int | None = None, seed: int = 0
) -> None:
    """Runs the experiments in results/ again, one after the other, and prints a line for each and a summary.

    Args:
        stream: those on this stream only.
        sample: so many of them, drawn without replacement; None: all.
        seed: names the draw.
    Raises:
        InputError: there are no such results, or `sample` is 0.
        NotReproduced: one differs or could not be run; the others were run all the same.
    """
    folders = chosen(root / "results", stream, sample, seed)
    counts: Counter[str] = Counter()
    try:
        with prefect_server() as wait:  # one for all of them
            wait()
            for folder in folders:
                started, (verdict, why) = time.monotonic(), judge(folder, root, console)
                counts[verdict] += 1
                took = f"{time.monotonic() - started:.1f} s"
                line = f"{verdict:18}{folder.relative_to(root)}  {took}" + f"  {why}" * bool(why)
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    finally:
        said = [f"{counts[verdict]} {verdict}" for verdict in (SAME, DIFFERS, FAILED)]
        left = len(folders) - counts.total()
        said += [f"{left} not reached"] * bool(left)
        console.print(f"of {len(folders)} results: {', '.join(said)}", highlight=False, soft_wrap=True)
    if counts[SAME] < len(folders):
        raise NotReproduced(f"{len(folders) - counts[SAME]} of {len(folders)} results are not reproduced")


def chosen(results: Path, stream: str | None, sample: int | None, seed: int) -> list[Path]:
    """The folders results/STREAM/NAME/seed-N, all or a drawn sample, in order."""
    if stream is not None and not re.fullmatch(r"\w[\w.-]*", stream):
        raise InputError(f"--stream: expected the name of a stream (got '{stream}')")
    if sample == 0:
        raise InputError("--sample: expected a number of results, 1 or more (got 0)")
    folders = sorted(path for path in results.glob(f"{stream or '*'}/*/seed-*") if path.is_dir())
    folders = [path for path in folders if re.fullmatch(r"seed-\d+", path.name)]
    if not folders:
        raise InputError(f"no results in {results / (stream or '')}; expected folders STREAM/NAME/seed-N")
    if sample is None or sample >= len(folders):
        return folders
    drawn = numpy_generator(seed, "verify").choice(len(folders), sample, replace=False)
    return [folders[place] for place in sorted(drawn)]


def judge(folder: Path, root: Path, console: Console) -> tuple[str, str]:
    """The verdict on a result, and why; whatever goes wrong is the verdict."""
    try:
        _, differences = repeat(folder, root, console)
    except Exception as error:
        reason = " ".join(str(error).split()) or "no reason given"
        return FAILED, reason if isinstance(error, InputError) else f"{type(error).__name__}: {reason}"
    return (DIFFERS, "; ".join(differences)) if differences else (SAME, "")


def repeat(folder: Path, root: Path, console: Console) -> tuple[str, list[str]]:
    """Runs the experiment in `folder` again: the digest that it has now, and what differs, in words.

    Raises:
        InputError: `folder` holds no results.
    """
    found = finished_results(folder)
    if found is None:
        raise InputError(f"{folder} holds no results of fcl; expected a folder with run.json")
    with tempfile.TemporaryDirectory(prefix="fcl-verify-") as place:
        spec = saved_experiment(found, root, Path(place), (folder / "course.parquet").exists())
        with (
            progress_bar(console, f"again: {spec.title}") as bar,
            Run(spec, root, Path(place) / "again", on_progress=bar) as again,
        ):
            play(again)
            digest = again.digest()
        if digest != found["digest"]:
            return digest, [f"its digest is {found['digest']}, run again it is {digest}"]
        return digest, differences(folder, Path(place) / "again")


def saved_experiment(found: dict, root: Path, place: Path, course: bool) -> Experiment:
    """The experiment of a run.json, to be computed as params.yaml says now, with its states in `place`.

    Args:
        course: also measure the main model after every round, which makes course.parquet.
    """
    saved, run = found["experiment"], dict(read(root)["run"]) | {"course": course}
    if not run.get("address") and "://" not in str(run.get("store", "")):  # else the cluster must reach them
        run["store"] = str(place / "runs")
    stream = StreamParameters.model_validate(saved["stream_parameters"])
    return Experiment.model_validate({**saved, "stream_parameters": stream, "run": run_parameters(run)})


def differences(folder: Path, again: Path) -> list[str]:
    """In which tables and metrics results differ from those of a second run; what depends on the clock is left out."""
    found = [f"{name} is missing" for name in ("metrics.json", *TABLES) if not (folder / name).exists()]
    if found:
        return found
    for name in sorted({path.name for where in (folder, again) for path in where.glob("*.parquet")}):
        if not ((folder / name).exists() and (again / name).exists()):
            found.append(f"{name} is in one of both alone")
            continue
        there, here = (pd.read_parquet(where / name) for where in (folder, again))
        columns = [column for column in there if column not in UNEQUAL]
        if not set(columns) <= set(here) or not there[columns].equals(here[columns]):
            found.append(f"{name} has other rows")
    there, here = (read_json(where / "metrics.json") for where in (folder, again))
    for name in sorted(there.keys() - TIMED):
        if there[name] != here.get(name):
            found.append(f"metrics.json says {name} {there[name]}, run again it is {here.get(name)}")
    return found
