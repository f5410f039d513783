"""Fusion at the server: aggregation or distillation, in as many independent jobs as the method has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from methods import Moment, State

from .site import Site
from .store import Ref
from .upload import AdmittedUpload, Verdict
from .workers import Workers


def uploads_of(site: Site, verdicts: Sequence[Verdict]) -> list[AdmittedUpload]:
    """The admitted uploads in the order of their clients, whatever order they came in."""
    admitted = sorted((verdict for verdict in verdicts if verdict.admitted), key=lambda verdict: verdict.client)
    return [AdmittedUpload(verdict.client, verdict.samples, site.store, verdict.file) for verdict in admitted]


def fuse(site: Site, job: str, server: Ref, verdicts: Sequence[Verdict], moment: Moment) -> Ref:
    """One job: a part of the next server state."""
    return site.write(finite(site.method.fuse(job, site.read(server), uploads_of(site, verdicts), moment), moment))


def join(site: Site, server: Ref, parts: dict[str, Ref], moment: Moment, last_round: bool) -> Ref:
    """The next server state; after the last round of an experience, as the method leaves it for the next."""
    state = site.method.join(site.read(server), {job: site.read(part) for job, part in parts.items()}, moment)
    return site.write(finite(site.method.end_experience(state, moment.experience) if last_round else state, moment))


def fuse_all(site: Site, server: Ref, verdicts: Sequence[Verdict], moment: Moment, last_round: bool) -> Ref:
    """Fusion of a single job, without writing and reading its part."""
    method, state = site.method, site.read(server)
    uploads = uploads_of(site, verdicts)
    if uploads:
        (job,) = method.fusion_jobs([upload.client for upload in uploads], moment)
        state = method.join(state, {job: method.fuse(job, state, uploads, moment)}, moment)
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


@task(
    name="fuse",
    task_run_name="fuse {what} round {moment.round} of experience {moment.experience}",
    cache_policy=NO_CACHE,
    log_prints=False,
)
def fuse_uploads(workers: Workers, function, what: str, moment: Moment, *arguments) -> Ref:
    """Prefect task: one job of the fusion (`fuse`), the joining of several (`join`), or all at once (`fuse_all`)."""
    return workers.call(function, *arguments)
