"""The check of a cluster's workers: each must see the run's project and store, and compute as the run does.

What differs is said as a sentence that names the machine. A worker that joins later, or is started again, is checked
before its first work.
"""

from __future__ import annotations

import hashlib
import json
import platform
import socket
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from errors import InputError

from .computing import Result, Work, open_and_warm_up
from .foundation import place as foundation_place
from .site import Place, site
from .store import DamagedFile, Ref, Store

PROJECT = Path(__file__).parent.parent
SOURCES = ("methods", "models", "streams", "tasks")  # the code that a result depends on
FILES = ("multitask.py", "metrics/sentences.py")


def code_digest() -> str:
    """SHA-256 over the source code that a result depends on, as it lies here now."""
    folders = (path for name in SOURCES for path in (PROJECT / name).rglob("*.py"))
    code = hashlib.sha256()
    for path in sorted([*folders, *(PROJECT / name for name in FILES)]):
        code.update(path.read_bytes())
    return code.hexdigest()


@cache
def imported_code() -> str:
    """`code_digest` when this process asked first: a worker that outlives an edit still computes with the old code."""
    return code_digest()


@dataclass(frozen=True)
class Common:
    """What a run and its workers must have in common; the fields are the words of the sentence that says otherwise."""

    python: str
    torch: str
    code: str
    stream: str
    foundation: str
    device: str


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "code": imported_code()}


def common(place: Place) -> Common:
    """This process's side of it.

    Raises:
        InputError: the stream is not here, or the device is not.
        OSError: the foundation model is not here.
    """
    opened = site(place)
    model = ""
    if place.experiment.foundation:
        folder = foundation_place(place.foundation or place.experiment.stream, place.root)
        model = json.loads((folder / "foundation.json").read_text())["digest"]
    return Common(**versions(), stream=opened.stream.digest, foundation=model, device=torch.device(opened.device).type)


def objection(place: Place, wanted: Common, probe: Ref | None) -> str:
    """Called in a worker: why it cannot compute for the run, naming its machine; empty: it can.

    Args:
        wanted: the run's own side.
        probe: a file that the run has just written to the store; None: not looked for.
    """
    host = socket.gethostname()
    for name, version in versions().items():  # first: with other versions all else may fail in ways of its own
        if version != getattr(wanted, name):
            return differs(host, name, version, getattr(wanted, name))
    if not (place.root / "params.yaml").is_file():
        return f"{host} does not see the project's folder {place.root}"
    try:
        mine = common(place)
    except (InputError, OSError, ValueError, KeyError) as error:
        return f"{host} cannot open the experiment in {place.root} ({error})"
    for field in fields(Common):
        if getattr(mine, field.name) != getattr(wanted, field.name):
            return differs(host, field.name, getattr(mine, field.name), getattr(wanted, field.name))
    try:
        if probe:
            Store(place.store).bytes(probe)
    except DamagedFile:
        return f"{host} does not see what the run writes to the store {place.store}"
    except Exception as error:  # each file system has its own: no credentials, no such bucket, no connection
        return f"{host} cannot read the store {place.store} ({type(error).__name__}: {error})"
    return ""


def differs(host: str, what: str, there: str, here: str) -> str:
    """The clause for a field of `Common`; of digests the beginning is enough."""
    what = {"python": "Python", "torch": "PyTorch", "code": "project's code", "foundation": "foundation model"}.get(
        what, what
    )
    return f"the {what} on {host} is {there[:12] or 'missing'}, the run's is {here[:12]}"


_admitted: set[tuple[Place, Common]] = set()  # what this worker process has been found fit for


class Examination(Work):
    """The check, and what torch needs before its first step, as work for one worker; gives the objection."""

    def __init__(self, place: Place, wanted: Common, probe: Ref | None) -> None:
        super().__init__(objection, place, (wanted, probe))

    def __call__(self) -> str:
        found = objection(self.place, *self.arguments)
        if not found:
            _admitted.add((self.place, self.arguments[0]))
            open_and_warm_up(self.place)
        return found


class ClusterWork(Work):
    """Work that a worker does only if it is fit for the run."""

    def __init__(
        self, function: Callable[..., Result], place: Place, arguments: tuple[Any, ...], wanted: Common
    ) -> None:
        super().__init__(function, place, arguments)
        self.wanted = wanted

    def __call__(self) -> Result:
        if (self.place, self.wanted) not in _admitted:
            found = objection(self.place, self.wanted, None)
            if found:
                raise InputError(f"a worker that joined the cluster cannot compute for this run: {found}")
            _admitted.add((self.place, self.wanted))
        return super().__call__()


def told_apart(place: Place, run: str) -> Place:
    """The place under a name of this run alone: a worker that served an earlier run must open the stream anew."""
    return replace(place, run=run)
