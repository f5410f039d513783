"""Whole experiments, as a user runs them: a Prefect server, real files, real processes."""

from __future__ import annotations

import atexit
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from flows import settings

settings.apply()

MEMORY = "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true&check_same_thread=false"
DEADLINE = 120  # seconds after which something that must happen has not; no test measures time


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One Prefect server for all runs of the session."""
    from flows.server import TemporaryServer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        # Under one run after the other Prefect's SQLite file answers "locked", and Prefect then waits for two seconds.
        patch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", MEMORY)
        server = TemporaryServer()
        atexit.register(server.stop)  # not in the teardown: Prefect sends its last records when the process ends
        patch.setenv("PREFECT_API_URL", server.url)
        from prefect.settings import PREFECT_API_URL, temporary_settings

        server.wait()
        with temporary_settings({PREFECT_API_URL: server.url}):  # Prefect may have been imported before
            yield server


@pytest.fixture(autouse=True)
def _server(server):
    """Every run in this folder uses the session's server."""


@pytest.fixture(scope="session")
def workshop(small_project, tmp_path_factory):
    """A project under git in which all runs of the session lie, each with an output folder of its own."""
    root = Path(shutil.copytree(small_project, tmp_path_factory.mktemp("workshop") / "project"))
    (root / ".gitignore").write_text("/built/\n/data\n/runs/\n/results/\n/mlflow.db\n/mlruns/\n")
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "."], [*identity, "commit", "--quiet", "-m", "a project"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


@dataclass(frozen=True)
class Outcome:
    """A finished run, read back from its files."""

    root: Path
    out: Path
    run_folder: Path  # where its states and uploads lay

    def json(self, name: str) -> dict:
        return json.loads((self.out / name).read_text())

    @property
    def digest(self) -> str:
        return self.json("run.json")["digest"]

    @property
    def metrics(self) -> dict[str, float]:
        return self.json("metrics.json")

    @property
    def matrix(self) -> pd.DataFrame:
        return pd.read_parquet(self.out / "accuracy_matrix.parquet")

    @property
    def rounds(self) -> pd.DataFrame:
        return pd.read_parquet(self.out / "rounds.parquet")

    def models(self) -> dict[str, dict]:
        """The final models' tensors by file name."""
        from safetensors.torch import load_file

        return {path.stem: load_file(path) for path in sorted((self.out / "models").iterdir())}


@pytest.fixture(scope="session")
def new_out(workshop) -> Callable[[], Path]:
    """A fresh output folder in the workshop."""
    numbers = itertools.count()
    return lambda: workshop / "results" / f"run-{next(numbers)}" / "seed"


@pytest.fixture(scope="session")
def play_run(workshop, new_out):
    """Runs an experiment in this process: `play_run("fedavg", "train.rounds=1", seed=0, workers=1)`.

    With `track=True` MLflow has everything when it returns; with a tracker of the test's own it does not wait for that.
    """
    from flows.conduct import play
    from parameters import experiment
    from tasks.run import Run
    from tasks.tracking import Tracker

    def run_it(
        method: str = "fedavg",
        *sets: str,
        stream: str = "digits",
        seed: int = 0,
        out: Path | None = None,
        resume: bool = False,
        track: bool | Tracker = False,
        root: Path = workshop,
        during: Callable[[Run], Callable[[int, int, str], None]] | None = None,
        **run: object,
    ) -> Outcome:
        spec = experiment(method, stream, seed, list(sets), root, device="cpu", **run)
        opened = Run(spec, root, out or new_out(), resume)
        if during:
            opened.on_progress = during(opened)
        with Tracker() if track is True else nullcontext(track or None) as tracker, opened:
            play(opened, tracker)
        if track is True:
            delivered(root)
        return Outcome(root, opened.out, opened.folder.path)

    return run_it


@pytest.fixture(scope="session")
def undisturbed(play_run) -> Outcome:
    """FedAvg on digits with seed 0 on two threads: what others are compared with. Only read it."""
    return play_run("fedavg")


def same_results(one: Outcome, other: Outcome) -> None:
    """Asserts that two runs have the same states, matrix and rounds (but for the seconds they took)."""
    assert one.digest == other.digest
    pd.testing.assert_frame_equal(one.matrix, other.matrix, check_exact=True)
    rounds = [run.rounds.drop(columns="seconds") for run in (one, other)]
    pd.testing.assert_frame_equal(*rounds, check_exact=True)


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Outcome, Outcome], None]:
    return same_results


def eventually(happened: Callable[[], object], what: str, within: float = DEADLINE, pause: float = 0.002):
    """What `happened` gives as soon as it is true."""
    end = time.monotonic() + within
    while not (value := happened()):
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(pause)
    return value


def delivered(root: Path) -> None:
    """Returns when nothing is on its way to MLflow any more."""
    eventually(lambda: not list((root / "runs" / "untracked").iterdir()), "an empty runs/untracked", pause=0.05)


@pytest.fixture(scope="session")
def processes(server):
    """Where victims' processes come from: a fork server, which imports once what all of them need."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["flows.conduct", "flows.experiment", "torch._dynamo"])
    return found


@pytest.fixture(scope="session", name="delivered")
def _delivered() -> Callable[[Path], None]:
    return delivered


@pytest.fixture(scope="session", name="eventually")
def _eventually() -> Callable:
    return eventually


@pytest.fixture
def fcl(workshop, call_fcl):
    """`fcl ARGUMENTS` in the workshop, in this process: (exit status, stdout, stderr)."""
    return partial(call_fcl, workshop)


@pytest.fixture(scope="session")
def start_fcl(workshop):
    """Starts `fcl ARGUMENTS` as a process of its own."""
    command = str(Path(sysconfig.get_path("scripts")) / "fcl")

    def start(*arguments: str | Path, root: Path = workshop, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [command, *map(str, arguments)],
            cwd=root,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
