"""A run of one experiment: what its rounds share while it lasts, and its beginning and end on disk."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from errors import InputError
from methods import Moment
from models.foundation import FoundationParameters
from parameters import Experiment, foundation_parameters, read, stream_parameters
from streams.parameters import StreamParameters
from streams.stream import build, open_stream

from . import interruption
from .checkpoint import TABLE, Progress, RunFolder, differences
from .door import PROJECT, code_digest
from .files import file_digest
from .foundation import Built
from .foundation import build as build_foundation
from .limit import TimeLimit
from .patience import space_for
from .site import Place, Site, resolve_device, site
from .source import source
from .store import Ref, Store
from .workers import Workers

if TYPE_CHECKING:
    from .training import Trained

LOCK = PROJECT / "requirements.lock"


class Run:
    """One run. Use as a context manager: it holds the folder's lock and the workers.

    Args:
        experiment: what to run.
        root: the project's folder.
        out: where the results will be.
        resume: go on where an interrupted run of this experiment stopped.
        on_progress: called after each step with (steps done, steps in all, what comes next).
    Raises:
        InputError: `out` holds another experiment; `resume` with other parameters; the stream cannot be built.
    """

    def __init__(
        self,
        experiment: Experiment,
        root: Path,
        out: Path,
        resume: bool = False,
        on_progress: Callable[[int, int, str], None] = lambda done, total, what: None,
    ) -> None:
        self.experiment, self.root, self.out, self.resume = experiment, root, out, resume
        self.on_progress = on_progress
        self.flow_runs: list[str] = []
        self.seconds_per_sample = 0.0  # of client training, measured; sizes the cohorts
        self.notes: list[str] = []  # failures that the run survived, with their traces
        self.started = time.time()
        self._open = ExitStack()

    def __enter__(self) -> Run:
        experiment, root = self.experiment, self.root
        check_out(self.out, experiment)
        self.source = source(root)  # now: in the hours that a run may take others change the tree
        folder = run_folder(experiment, root, self.out)
        folder.check(self.resume)
        stream = built_name(experiment.stream, experiment.stream_parameters, root)
        build(stream, experiment.stream_parameters, root)
        store = experiment.run.store
        where = f"{store}/{folder.path.name}/store" if "://" in store else str(folder.path / "store")
        self.built = foundation_of(experiment, root)
        place = Place(experiment, root, where, stream, self.built.folder.name if self.built else "")
        self.site: Site = site(place)
        method = self.site.method  # all that can be wrong with the parameters is known before anything is written
        with ExitStack() as opening:
            self.folder = opening.enter_context(folder)
            if not self.site.store.local:
                Store(where).check()  # without patience: a wrong bucket or key is said at once
            about = experiment.run
            self.workers = opening.enter_context(Workers(place, about.runner, about.workers, about.address))
            self.limit = TimeLimit(about.timeout, folder.path) if about.timeout else None
            progress = self.folder.open(self.resume, self.basis(), self._damaged)
            # Clients' states written since the last checkpoint. Also those that do not count, or that are equal to what
            # a client has: its file on the disk was replaced.
            self.written: set[Ref] = set()
            if progress is None:
                self.site.store.clear()
                progress = Progress(Moment(0, 0), self.site.write(method.start()))
            self.progress = progress
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def basis(self) -> dict[str, str]:
        """Digests of what the result depends on besides the parameters."""
        basis = {"stream": self.site.stream.digest, "code": code_digest(), "lock": file_digest(LOCK) or ""}
        return basis | ({"foundation": self.built.record["digest"]} if self.built else {})

    def _damaged(self, progress: Progress) -> list[str]:
        """The states that an interrupted run left missing or not whole."""
        broken = sorted(ref.name for ref in progress.states if not self.site.store.intact(ref))
        return [f"{self.site.store.url}/{name} (missing or not whole)" for name in broken]

    # what is left

    def experiences_left(self) -> range:
        return range(self.progress.next.experience, self.site.stream.experiences)

    def rounds_left(self, experience: int) -> Iterator[Moment]:
        """The rounds of `experience` that are not done."""
        first = self.progress.next.round if self.progress.next.experience == experience else 0
        for number in range(first, self.site.rounds_in(experience)):
            yield Moment(experience, number)

    @property
    def steps(self) -> int:
        """Rounds and evaluations in all."""
        last = self.site.stream.experiences - 1
        return last * (self.experiment.train.rounds + 1) + self.site.rounds_in(last) + 2

    @property
    def steps_done(self) -> int:
        experience, number = self.progress.next
        if experience == self.site.stream.experiences:
            return self.steps
        return experience * (self.experiment.train.rounds + 1) + number + self.progress.evaluated

    # moving on

    def advance(self, next: Moment) -> None:
        """Checkpoint: what is recorded so far counts, what no state refers to any more is deleted.

        Raises:
            KeyboardInterrupt: the user has interrupted the run; the checkpoint is made all the same.
        """
        self.progress.next = next
        self.save()
        store = self.site.store
        store.keep_only("uploads", ())
        store.keep_only("broadcasts", ())
        store.keep_only("works", ())
        store.keep_only("states", self.progress.states)
        experience, number = next
        rounds = self.site.rounds_in(min(experience, self.site.stream.experiences - 1))
        what = f"experience {experience}, " + (f"round {number}" if number < rounds else "evaluation")
        self.on_progress(self.steps_done, self.steps, "results" if self.steps_done == self.steps else what)
        interruption.heed()

    def save(self) -> None:
        """A checkpoint; before it counts, its states and the journal are where a power cut does not reach them."""
        self.folder.save(self.progress, self.site.store.paths({self.progress.server, *self.written}))
        self.written.clear()

    def observe(self, seconds_per_sample: Sequence[float]) -> None:
        """Learns from the last round how long clients take."""
        if seconds_per_sample:
            self.seconds_per_sample = statistics.median(seconds_per_sample)

    def record_tables(self, moment: Moment, trained: Trained) -> None:
        """What a client decided in a round, for the tables of the results."""
        place = {"experience": moment.experience, "round": moment.round, "client": trained.client}
        for name, rows in trained.tables.items():
            self.folder.record(f"{TABLE}{name}", [{**place, **row} for row in rows])

    def note(self, text: str) -> None:
        """Keeps a failure that the run survived, in memory and in the run's folder."""
        self.notes.append(text)
        with space_for(str(self.folder.path)), open(self.folder.path / "failures.log", "a") as file:
            file.write(text + "\n")

    def digest(self) -> str:
        """SHA-256 over all server and client states."""
        states = {"server": self.progress.server.digest}
        states |= {f"client {client}": ref.digest for client, ref in self.progress.clients.items()}
        return hashlib.sha256(json.dumps(states, sort_keys=True).encode()).hexdigest()


def run_folder(experiment: Experiment, root: Path, out: Path) -> RunFolder:
    """Where a run lives while it lasts; the output folder tells two runs of one experiment apart."""
    name = f"{experiment.stream}-{experiment.method}-{experiment.seed}"
    key = f"{name}-{hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:8]}"
    store = experiment.run.store
    return RunFolder(root / ("runs" if "://" in store else store) / key, experiment)


def built_name(name: str, parameters: StreamParameters, root: Path) -> str:
    """The stream's own name if it is as in params.yaml, else one of its own.

    A run with `--set streams.NAME...` must not change the stream that others use and that DVC versions.
    """
    params = read(root)
    if name in params["streams"] and stream_parameters(params, name) == parameters:
        return name
    return f"{name}-{hashlib.sha256(parameters.model_dump_json().encode()).hexdigest()[:8]}"


def foundation_of(experiment: Experiment, root: Path) -> Built | None:
    """The experiment's foundation model, made if need be; None where its method works without one."""
    if not experiment.foundation:
        return None
    stream = built_name(experiment.stream, experiment.stream_parameters, root)
    name = foundation_name(experiment.stream, stream, experiment.foundation, root)
    device = resolve_device(experiment.run.device)
    return build_foundation(name, experiment.foundation, open_stream(stream, root), root, device)


def foundation_name(stream: str, built: str, parameters: FoundationParameters, root: Path) -> str:
    """The folder of a foundation model: that of its stream (`built`), unless `--set` gave it parameters of its own."""
    params = read(root)
    known = stream in params["streams"]  # not where an old result is verified
    if known and foundation_parameters(params, stream) == parameters:
        return built
    return f"{built}-{hashlib.sha256(parameters.model_dump_json().encode()).hexdigest()[:8]}"


def finished_results(out: Path) -> dict | None:
    """The run.json of the finished experiment in `out`, or None: there is nothing.

    Raises:
        InputError: `out` is something else than results.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        found = json.loads((out / "run.json").read_text())
        if {"digest", "parameter_digest", "experiment"} <= found.keys():
            return found
    except (OSError, ValueError, AttributeError):
        pass
    raise InputError(f"{out} is not empty and holds no results of fcl; expected an empty folder or one with a run.json")


def check_out(out: Path, experiment: Experiment) -> None:
    """Refuses to overwrite another experiment's results, and a folder that cannot be made."""
    parent = next(folder for folder in out.resolve().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"--out {out}: {parent} is no folder that can be written to")
    found = finished_results(out)
    if found is not None and found["parameter_digest"] != experiment.digest:
        changed = ", ".join(differences(found["experiment"], experiment.identity()))
        raise InputError(f"--out {out} holds another experiment ({changed}); choose another --out or remove it")
