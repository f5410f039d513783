"""What a worker needs to compute for an experiment: the stream, the method and the store, opened once per process.

Tasks carry references (experiment, digests), never tensors or open files, so that any process on any machine that
sees the project and the store can do any of them.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

import methods
import models
from errors import InputError
from methods import CENTRE, Method, Moment, Setting, State
from methods.devices import devices
from methods.training import LocalData
from models import Architecture
from models.foundation import Foundation
from models.pretrained import Pretrained
from parameters import Experiment
from streams.foreign import foreign
from streams.general import general_labels
from streams.photograph import photograph
from streams.stream import Stream, open_stream

from .foundation import open_foundation, test_rows
from .foundation import place as foundation_place
from .store import Ref, Store


@dataclass(frozen=True)
class Place:
    """Where an experiment is: enough to open its site anywhere."""

    experiment: Experiment
    root: Path  # the project's folder
    store: str  # URL of the experiment's own part of the store
    stream: str = ""  # the built stream's folder, where that is not the stream's own name
    foundation: str = ""  # the foundation model's folder, likewise
    run: str = ""  # tells runs apart in workers that outlive them

    def __hash__(self) -> int:
        return hash((self.experiment.digest, self.root, self.store))


class Site:
    """An experiment opened in this process."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.experiment = place.experiment
        self.store = Store(place.store, patience=self.experiment.run.store_patience)
        self.device = resolve_device(self.experiment.run.device)

    @cached_property
    def stream(self) -> Stream:
        stream = open_stream(self.place.stream or self.experiment.stream, self.place.root)
        if stream.parameters != self.experiment.stream_parameters:
            raise InputError(f"stream {stream.name} was rebuilt with other parameters while this run used it")
        return stream

    @cached_property
    def method(self) -> Method:
        experiment, stream = self.experiment, self.stream
        kind = methods.get(experiment.method)
        if stream.modality != "image" and experiment.train.augmentation.active:
            raise InputError(
                f"train.augmentation is for images, but the inputs of stream {stream.name} are {stream.modality}s"
            )
        architectures, parts = self.architectures()
        params = kind.Params(**experiment.method_parameters)
        setting = Setting(
            architectures,
            experiment.train,
            experiment.seed,
            stream.clients,
            stream.experiences,
            self.device,
            public=lambda: self.load(stream.public()),
            outside=self.outside,
            picture=lambda name: photograph(name, self.place.root),
            oracle=(lambda experience: self.data(CENTRE, experience)) if kind.is_oracle(params) else None,
            foundation=lambda: self.foundation,
            task_aware=stream.task_aware,
            devices=devices(experiment.devices, stream.clients, experiment.seed) if experiment.devices else (),
            parts=parts,
        )
        return kind(params, setting)

    def architectures(self) -> tuple[tuple[Architecture, ...], tuple[int, ...]]:
        """The networks; where clients have different tasks also which of them each has: the first is for all tasks."""
        stream, found = self.stream, []
        for model in self.experiment.models:
            if models.modality(model["name"]) != stream.modality:
                able = [name for name in models.names() if models.modality(name) == stream.modality]
                raise InputError(
                    f"model.name: {model['name']} reads {models.modality(model['name'])}s, but the inputs of stream "
                    f"{stream.name} are {stream.modality}s; choose one of {', '.join(able)}"
                )
            options = {key: value for key, value in model.items() if key != "name"}
            if stream.layout:
                options["layout"] = stream.layout.to_record()
            found.append(Architecture(model["name"], stream.shape, stream.classes, options))
        if not stream.layout:
            return tuple(found), ()
        if len(found) > 1:
            raise InputError(f"models: clients of a stream of several tasks have one network (got {len(found)})")
        (whole,) = found
        frozen = whole.options.get("rank") is not None

        def network(about: Architecture) -> Architecture | Pretrained:
            return Pretrained(about, lambda: self.foundation) if frozen else about

        has = [stream.tasks_of(client) for client in range(stream.clients)]
        kinds = sorted(set(has))
        own = [network(replace(whole, options={**whole.options, "tasks": list(tasks)})) for tasks in kinds]
        return (network(whole), *own), tuple(1 + kinds.index(tasks) for tasks in has)

    @cached_property
    def foundation(self) -> Foundation:
        name = self.place.foundation or self.experiment.stream
        folder, wanted = foundation_place(name, self.place.root), self.experiment.foundation
        model = open_foundation(folder, self.device)
        made = json.loads((folder / "foundation.json").read_text())["parameters"]
        if wanted and made != wanted.model_dump(mode="json"):
            raise InputError(f"built/foundations/{name} was made again with other parameters while this run used it")
        return model

    @property
    def every_test(self) -> LocalData:
        """All test samples of the stream."""
        return self.load(test_rows(self.stream))

    @cached_property
    def general(self) -> dict[str, torch.Tensor]:
        """Labels of `every_test` in each general task of the foundation model."""
        stream, tasks = self.stream, self.experiment.foundation.general if self.experiment.foundation else ()
        samples = stream.samples_of(test_rows(stream))
        every = {task: general_labels(task, stream.parameters, stream.labels, self.place.root) for task in tasks}
        return {task: torch.from_numpy(labels[samples]).to(self.device) for task, labels in every.items()}

    def outside(self, source: str) -> LocalData:
        """All training samples of another source, scaled to the stream's images or cut to its texts."""
        return LocalData(*foreign(source, self.stream, self.place.root), self.device)

    # states

    def read(self, ref: Ref | None) -> State:
        if ref is None:
            return State()
        content = self.store.get(ref, remember=True)
        return State(content.tensors, content.header["values"])

    def write(self, state: State) -> Ref:
        return self.store.put("states", state.tensors, {"values": dict(state.values)})

    # who is where, when

    def rounds_in(self, experience: int) -> int:
        """Rounds of an experience; the last one waits for the clients that lag behind."""
        rounds = self.experiment.train.rounds
        if experience < self.stream.experiences - 1:
            return rounds
        return rounds + max(self.lag(client) for client in self.method.participants)

    def lag(self, client: int) -> int:
        """How many rounds `client` is behind the federation."""
        return 0 if client == CENTRE else round(self.stream.lag(client) * self.experiment.train.rounds)

    def own(self, client: int, moment: Moment) -> Moment | None:
        """Where `client` is in its own stream at the server's `moment`; None: it has not begun, or is done."""
        rounds = self.experiment.train.rounds
        passed = moment.experience * rounds + moment.round - self.lag(client)
        return Moment(*divmod(passed, rounds)) if 0 <= passed < self.stream.experiences * rounds else None

    def able(self, client: int, moment: Moment) -> bool:
        """Whether `client` has anything to train on at the server's `moment`."""
        own = self.own(client, moment)
        return own is not None and len(self.rows(client, own.experience)) > 0

    # who sees what

    def classes(self, client: int, experience: int) -> tuple[int, ...]:
        """C_i^t; for the centre all classes so far, since it holds all data so far."""
        stream = self.stream
        return stream.seen_by_all(experience) if client == CENTRE else stream.classes_of(client, experience)

    def earlier(self, client: int, experience: int) -> tuple[tuple[int, ...], ...]:
        """C_i^s of each experience s < t."""
        return () if client == CENTRE else tuple(self.stream.classes_of(client, past) for past in range(experience))

    def seen(self, client: int, experience: int) -> tuple[int, ...]:
        """C_i^{<=t}; for client -1 over all clients."""
        stream = self.stream
        return stream.seen_by_all(experience) if client == CENTRE else stream.seen(client, experience)

    def candidates(self, client: int, trained: int, tested: int, told: bool = False) -> tuple[int, ...]:
        """The classes among which samples of experience `tested` are predicted after experience `trained`.

        Args:
            told: the model knows the experience, whether the stream says it or not.
        """
        stream = self.stream
        if not (stream.task_aware or told):
            return self.seen(client, max(trained, tested))
        return stream.classes_in(tested) if client == CENTRE else stream.classes_of(client, tested)

    def rows(self, client: int, experience: int):
        stream = self.stream
        return stream.all_train(experience) if client == CENTRE else stream.train(client, experience)

    def data(self, client: int, experience: int) -> LocalData:
        return self.load(self.rows(client, experience))

    def test(self, client: int, experience: int) -> LocalData:
        """Test samples of an experience: the client's own, or for client -1 everyone's."""
        return self.load(self.stream.test(None if client == CENTRE else client, experience))

    def load(self, rows) -> LocalData:
        return LocalData(*self.stream.load(rows), self.device)


def resolve_device(name: str) -> str:
    """`auto` is the GPU where there is one; anything else is checked."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"run.device: expected auto, cpu, cuda or cuda:N (got '{name}')") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"run.device: '{name}' is not here; PyTorch sees {torch.cuda.device_count()} GPU(s)")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"run.device: expected auto, cpu, cuda or cuda:N (got '{name}')")
    return name


_sites: OrderedDict[Place, Site] = OrderedDict()
_lock = threading.Lock()


def site(place: Place) -> Site:
    """The opened experiment, kept for the next task of this process (the last few of them)."""
    with _lock:
        if place not in _sites:
            prepare_process()
            _sites[place] = Site(place)
            while len(_sites) > 4:
                _sites.popitem(last=False)
        return _sites[place]


def prepare_process() -> None:
    """One thread per operation and deterministic kernels: a sum's order must not depend on the machine's load."""
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if torch.cuda.is_available():  # on a CPU it would only cost time
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
