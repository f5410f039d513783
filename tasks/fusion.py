"""Fusion at the server: aggregation or distillation, in as many independent jobs as the method has.

Each job is a Prefect task of its own: one that fails is tried again alone, one that is done is not done again by a
resumed run (`jobs.py`).
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Sequence

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from errors import InputError
from methods import Moment, State

from .jobs import job_key
from .patience import StoreFailed
from .run import Run
from .site import Site
from .store import DamagedFile, Ref
from .upload import AdmittedUpload, Verdict


class FusionFailed(RuntimeError):
    """A job of the fusion failed in all its tries; the run can be resumed, and does what was not done."""


def uploads_of(site: Site, verdicts: Sequence[Verdict]) -> list[AdmittedUpload]:
    """The admitted uploads in the order of their clients, whatever order they came in."""
    admitted = sorted((verdict for verdict in verdicts if verdict.admitted), key=lambda verdict: verdict.client)
    return [AdmittedUpload(verdict.client, verdict.samples, site.store, verdict.file) for verdict in admitted]


def fuse(
    site: Site, job: str, server: Ref, verdicts: Sequence[Verdict], moment: Moment, every: float = math.inf
) -> Ref:
    """One job: a part of the next server state."""
    return site.write(work_on(site, job, server, site.read(server), verdicts, moment, every))


def work_on(
    site: Site, job: str, server: Ref, state: State, verdicts: Sequence[Verdict], moment: Moment, every: float
) -> State:
    """The job's result; what it has done is kept every `every` seconds, and a killed or failed try is gone on with.

    Args:
        server, state: the server's state before the fusion, as a reference and as it is.
    """
    key = job_key(job, server, verdicts, moment)
    begun = site.store.kept(key)
    begun = State(begun.tensors, begun.header["values"]) if begun else None
    last, result = time.monotonic(), None
    for following in site.method.fuse_on(job, state, uploads_of(site, verdicts), moment, begun):
        if result is not None and time.monotonic() - last >= every:
            site.store.keep(key, result.tensors, {"values": dict(result.values)})
            last = time.monotonic()
        result = finite(following, moment)
    return result


def join(site: Site, server: Ref, parts: dict[str, Ref], moment: Moment, last_round: bool) -> Ref:
    """The next server state; after the last round of an experience, as the method leaves it for the next."""
    state = site.method.join(site.read(server), {job: site.read(part) for job, part in parts.items()}, moment)
    return site.write(finite(site.method.end_experience(state, moment.experience) if last_round else state, moment))


def fuse_all(
    site: Site, server: Ref, verdicts: Sequence[Verdict], moment: Moment, last_round: bool, every: float = math.inf
) -> Ref:
    """Fusion of a single job, without writing and reading its part."""
    method, state = site.method, site.read(server)
    clients = sorted(verdict.client for verdict in verdicts if verdict.admitted)
    if clients:
        (job,) = method.fusion_jobs(clients, moment)
        state = method.join(state, {job: work_on(site, job, server, state, verdicts, moment, every)}, moment)
    return site.write(finite(method.end_experience(state, moment.experience) if last_round else state, moment))


def finite(state: State, moment: Moment) -> State:
    """The state, if it can be trained on: a fusion that diverged must not become a checkpoint.

    Raises:
        RuntimeError: a tensor of the next server state holds NaN or infinity.
    """
    for name, tensor in state.tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise RuntimeError(
                f"experience {moment.experience}, round {moment.round}: after the fusion {name} holds NaN or infinity; "
                "the round does not count. Too large a step, or an upload of huge weights or claimed samples"
            )
    return state


class Job:
    """A task of the fusion: what it computes, and what went wrong in its tries.

    Args:
        what: as the Prefect UI says it before "of round 1 of experience 2".
        function: `fuse`, `join` or `fuse_all`, which a worker calls with `arguments`.
        key: see `job_key`; with it, a resumed run finds the job done.
    """

    def __init__(self, run: Run, what: str, moment: Moment, function: Callable[..., Ref], *arguments, key: str = ""):
        self.run, self.what, self.moment, self.key = run, what, moment, key
        self.function, self.arguments = function, arguments
        self.tries, self.hopeless = 0, False
        self.failures: list[str] = []  # the traces of the tries that failed

    def attempt(self) -> Ref:
        """One try; called by the Prefect task."""
        self.tries += 1
        try:
            state = self.run.workers.call(self.function, *self.arguments)
            if self.key:  # here and not when all jobs are awaited: a kill in between must not cost this one
                self.run.folder.jobs.add(self.key, state)
            return state
        except Exception as error:
            self.hopeless = isinstance(error, StoreFailed)  # it has been tried again for long enough
            self.failures.append(traceback.format_exc())
            raise

    def submit(self) -> None:
        tries = fuse_uploads.with_options(
            retries=self.run.experiment.run.retries,
            retry_delay_seconds=0,
            retry_condition_fn=lambda *_: not self.hopeless,
        )
        self.future = tries.submit(self, self.moment)

    def wait(self) -> None:
        """Blocks until the job is done or has failed for good; what failed on the way is noted."""
        self.future.wait()
        if self.failures and not self.hopeless:
            self.run.note(f"{self}\n{''.join(self.failures)}")

    def __str__(self) -> str:
        where = f"experience {self.moment.experience}, round {self.moment.round}"
        return f"{where}: the job '{self.what}' failed in {len(self.failures)} of {self.tries} tries"

    def result(self) -> Ref:
        """The state that the job wrote.

        Raises:
            FusionFailed: no try succeeded.
            InputError, StoreFailed: something that the user can change stands in the way.
        """
        try:
            return self.future.result()
        except Exception as error:
            if isinstance(error, InputError | StoreFailed) or not self.failures:
                raise
            raise FusionFailed(
                f"{self} ({type(error).__name__}: {error}); the round's other jobs are kept, "
                "and --resume goes on from there"
            ) from error


@task(
    name="fuse",
    task_run_name="{job.what} of round {moment.round} of experience {moment.experience}",
    cache_policy=NO_CACHE,
    log_prints=False,
)
def fuse_uploads(job: Job, moment: Moment) -> Ref:
    """Prefect task: one job of the fusion (`fuse`), the joining of several (`join`), or all at once (`fuse_all`)."""
    return job.attempt()


def finish(jobs: Sequence[Job]) -> list[Ref]:
    """Does the jobs side by side; one that fails for good stops the run after the others are done."""
    for job in jobs:
        job.submit()
    for job in jobs:
        job.wait()
    return [job.result() for job in jobs]


def fuse_parts(
    run: Run, names: Sequence[str], server: Ref, verdicts: Sequence[Verdict], moment: Moment
) -> dict[str, Ref]:
    """The states of all jobs of a fusion, in the order of their names; what a killed run had done is taken from it."""
    log, parts, every = run.folder.jobs, {}, run.experiment.run.save_every
    if log.damaged:
        run.note(f"{log.path} has {log.damaged} unreadable lines; their jobs are done again")
    keys = {name: job_key(name, server, verdicts, moment) for name in names}
    for name, key in keys.items():
        try:
            parts[name] = log.find(key, run.site.store)
        except DamagedFile as error:
            run.note(f"experience {moment.experience}, round {moment.round}: {name} is fused again: {error}")
            parts[name] = None
    missing = [name for name in names if parts[name] is None]
    jobs = [
        Job(run, f"fuse {name}", moment, fuse, name, server, verdicts, moment, every, key=keys[name])
        for name in missing
    ]
    return parts | dict(zip(missing, finish(jobs), strict=True))
