"""Streams: built once, opened by every process, asked who sees which samples when.

built/streams/NAME/manifest.parquet     who sees which sample when, see `manifest`
built/streams/NAME/stream.json          parameters, plan and digests

A stream answers with rows of its manifest. Unless the stream overlaps, row n is sample n of the source.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from errors import InputError
from streams import description, domain, promises, records, scenario
from streams import manifest as manifests
from streams.atomic import written_whole
from streams.deal import deal
from streams.manifest import TEST, TRAIN, Manifest
from streams.parameters import StreamParameters
from streams.pattern import Patterns
from streams.plan import Plan
from streams.sources import Source, load, load_known

if TYPE_CHECKING:
    import pandas

FORMAT = 2  # part of every digest: raise it when the same parameters would give another stream


class Stream:
    """A federated continual stream over one source; opening it reads O(N) numbers, a look-up is a slice.

    Attributes:
        name: the stream's name in the parameters.
        parameters: what it was built from.
        digest: 64 hexadecimal digits that cover parameters, source, plan and manifest.
        classes, clients, experiences: how many there are.
        shape: (C, H, W) of an image, (L,) of a text as bytes, (layout.width,) of a record.
        modality: "image", "text" or, of a multi-task stream, "record".
        layout: how a record is laid out, and its tasks; None of images and texts.
        task_aware: the experience of a test sample is known, so predictions are made among its classes only.
        plan: who meets which class and domain when.
        patterns: which label is of which task, and which client has which task.
        inputs: (N, *shape) uint8, the source's, memory-mapped and read-only; `load` gives them as a client sees them.
        labels: (N,) int64, the source's.
    """

    def __init__(self, record: dict, manifest: Manifest, source: Source, root: Path) -> None:
        self.name: str = record["name"]
        self.digest: str = record["digest"]
        self.parameters = StreamParameters.model_validate(record["parameters"])
        self.clients = self.parameters.clients
        self.experiences = self.parameters.experiences
        self.classes = source.classes
        self.shape = tuple(source.inputs.shape[1:])
        self.layout = source.layout
        self.modality = "record" if source.layout else "text" if len(self.shape) == 1 else "image"
        self.patterns = Patterns.of(self.parameters, source.layout, source.classes)
        self.task_aware = self.parameters.scenario == "task-incremental"
        self.inputs = source.inputs
        self.labels = source.labels
        self.plan = Plan.from_record(record["plan"])
        self._root = root.absolute()
        self._sample, self._domain = manifest["sample"], manifest["domain"]
        # Rows sorted by split, experience, client: every answer, and every union over clients or over the
        # experiences so far, is then one slice. Public rows have experience and client -1, and come last.
        cell = (manifest["split"] * self.experiences + manifest["experience"]) * self.clients + manifest["client"]
        cell = np.where(manifest["client"] < 0, 2 * self.experiences * self.clients, cell)
        self._rows = np.argsort(cell, kind="stable")
        self._rows.setflags(write=False)
        self._starts = np.searchsorted(cell[self._rows], np.arange(2 * self.experiences * self.clients + 2))

    def __reduce__(self):
        # To another process goes the name: pickled, a memory map would become a copy of all images.
        return open_stream, (self.name, self._root)

    def train(self, client: int, experience: int) -> np.ndarray:
        """Sorted rows that `client` trains on in `experience`; may be empty."""
        return self._cells(TRAIN, experience, client)

    def test(self, client: int | None, experience: int) -> np.ndarray:
        """Sorted rows of the test samples of `client` (None: of all clients) in `experience`; may be empty."""
        return self._cells(TEST, experience, client)

    def public(self) -> np.ndarray:
        """Sorted rows of the training samples that no client holds."""
        return self._rows[self._starts[-2] :]

    def all_train(self, experience: int) -> np.ndarray:
        """Sorted rows of what all clients train on in experiences 0..experience."""
        self._check(0, experience)
        return np.sort(self._rows[self._starts[0] : self._starts[(experience + 1) * self.clients]])

    def load(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What these rows show: inputs (n, *shape) uint8, each in its domain, and labels (n,) int64."""
        samples = self._sample[rows]
        inputs = domain.apply(self.inputs[samples], samples, self._domain[rows], self.parameters)
        return inputs, self.labels[samples]

    def labels_of(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64: what `load` gives as labels, without a look at the inputs."""
        return self.labels[self._sample[rows]]

    def samples_of(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64: which samples of the source these rows show."""
        return self._sample[rows]

    def lag(self, client: int) -> float:
        """How late `client` is, in experiences, in [0, 1]; at least one client is at 0."""
        self._check(client, 0)
        return float(self.plan.behind[client])

    def tasks_of(self, client: int) -> tuple[str, ...]:
        """The tasks that `client` ever has, in the layout's order; of an ordinary stream "classify"."""
        self._check(client, 0)
        return tuple(name for name, held in zip(self.patterns.names, self.patterns.held[client], strict=True) if held)

    def present(self, client: int, experience: int) -> bool:
        """Whether `client` is in the federation in `experience`."""
        self._check(client, experience)
        return bool(self.plan.present(client, experience))

    def classes_of(self, client: int, experience: int) -> tuple[int, ...]:
        """Sorted classes that `client` may train on in `experience`; none while it is absent."""
        self._check(client, experience)
        return _indices(self.plan.within(client, experience))

    def classes_in(self, experience: int) -> tuple[int, ...]:
        """Sorted classes that any client may train on in `experience`."""
        self._check(0, experience)
        return _indices(self.plan.within(slice(None), experience).any(axis=0))

    def seen(self, client: int, experience: int) -> tuple[int, ...]:
        """Sorted classes that `client` has met in experiences 0..experience."""
        self._check(client, experience)
        return _indices(self.plan.met(client, experience))

    def seen_by_all(self, experience: int) -> tuple[int, ...]:
        """Sorted classes that any client has met in experiences 0..experience."""
        self._check(0, experience)
        return _indices(self.plan.met(slice(None), experience).any(axis=0))

    def describe(self) -> pandas.DataFrame:
        """One row per (client, experience): its classes (tuple), and how many train and test samples it has.

        Of a multi-task stream one row per (client, experience, task); the task is "none" where a client has none then.
        """
        return description.describe(self)

    def summary(self) -> pandas.DataFrame:
        """One row per experience: clients that are there, their fewest, median and most training samples, sums."""
        return description.summary(self)

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, {self.clients} clients, {self.experiences} experiences, {self.digest[:12]})"

    def _cells(self, split: int, experience: int, client: int | None) -> np.ndarray:
        self._check(client or 0, experience)
        first = (split * self.experiences + experience) * self.clients
        if client is None:
            return np.sort(self._rows[self._starts[first] : self._starts[first + self.clients]])
        return self._rows[self._starts[first + client] : self._starts[first + client + 1]]

    def _check(self, client: int, experience: int) -> None:
        if not (0 <= client < self.clients and 0 <= experience < self.experiences):
            raise IndexError(f"no client {client}, experience {experience} in {self!r}")


def build(name: str, parameters: StreamParameters, root: Path) -> Stream:
    """Build the stream, unless it is there with the same parameters and the same source.

    Args:
        name: its folder in built/streams: letters, digits, '.', '_' and '-'.
        root: the project folder.
    Raises:
        InputError: the source is wrong (`sources.load`), the parameters do not fit it, or a client is left without
            a training sample. An older stream of that name is then still there.
    """
    folder = records.folder(name, root)
    source = load(parameters, root)
    with suppress(InputError):  # absent, or damaged: then it is built anew
        stream = open_stream(name, root)
        if stream.parameters == parameters and records.read(name, root)["source"] == source.digest:
            return stream
    groups = _groups(source, parameters)
    if parameters.domain and len(source.inputs.shape) != 4:
        raise InputError(f"scenario domain-incremental changes images, and {parameters.source} has none")
    plan = scenario.plan(parameters, source.classes, source.layout)
    patterns = Patterns.of(parameters, source.layout, source.classes)
    manifest = deal(source.labels, source.is_test, plan, parameters, groups, patterns.of_label)
    promises.check(manifest, source.labels, plan, parameters.overlap, groups, patterns)
    record = {
        "format": FORMAT,
        "name": name,
        "parameters": parameters.model_dump(mode="json"),
        "source": source.digest,
        "classes": source.classes,
        "shape": list(source.inputs.shape[1:]),
        "plan": plan.to_record(),
    }
    record["digest"] = records.digest(record, manifest, patterns.names)
    with written_whole(folder, replace=True) as temporary:
        manifests.write(manifest, temporary / "manifest.parquet", patterns.names)
        (temporary / "stream.json").write_text(json.dumps(record, sort_keys=True) + "\n")
    return Stream(record, manifest, source, root)


def open_stream(name: str, root: Path) -> Stream:
    """Open a stream that was built, and check it against its digest.

    Raises:
        InputError: there is no such stream, its files are damaged or changed, or its source has changed.
    """
    record = records.read(name, root)
    path = records.folder(name, root) / "manifest.parquet"
    stale = f"; rebuild it with: fcl stream {name}"
    if record.get("format") != FORMAT:
        raise InputError(f"{records.shown(name)}: built by another version of the program{stale}")
    try:
        parameters = StreamParameters.model_validate(record["parameters"])
        tasks = parameters.multitask.tasks if parameters.multitask else manifests.TASKS
        manifest = manifests.read(path, tasks)
        intact = record["digest"] == records.digest(record, manifest, tasks)
    except (pa.ArrowException, OSError, KeyError, ValueError, IndexError, ValidationError) as error:
        raise InputError(f"{records.shown(name)}/manifest.parquet: missing or damaged{stale}") from error
    if not intact:
        raise InputError(
            f"{records.shown(name)}/manifest.parquet: not the content that stream.json names by digest{stale}"
        )
    source = load_known(parameters, record["source"], root)
    if source.digest != record["source"]:
        raise InputError(f"{records.shown(name)}: source {parameters.source} has changed since it was built{stale}")
    return Stream(record, manifest, source, root)


def _groups(source: Source, parameters: StreamParameters) -> np.ndarray | None:
    """(N,) the client of each sample where the partition is natural."""
    if parameters.partition.kind != "natural":
        return None
    if source.natural_clients is None:
        raise InputError(f"partition natural: {parameters.source} does not say whose a sample is; set client")
    there = int(source.natural_clients.max()) + 1
    if there != parameters.clients:
        raise InputError(f"clients {parameters.clients}: {parameters.source} has the samples of {there} clients")
    return source.natural_clients


def _indices(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())
