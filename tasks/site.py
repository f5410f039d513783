"""What a worker needs to compute for an experiment: the stream, the method and the store, opened once per process.

Tasks carry references (experiment, digests), never tensors or open files, so that any process on any machine that
sees the project and the store can do any of them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

import methods
from errors import InputError
from methods import CENTRE, Method, Setting, State
from methods.training import LocalData
from models import Architecture
from parameters import Experiment
from streams.stream import Stream, open_stream

from .store import Ref, Store


@dataclass(frozen=True)
class Place:
    """Where an experiment is: enough to open its site anywhere."""

    experiment: Experiment
    root: Path  # the project's folder
    store: str  # URL of the experiment's own part of the store
    stream: str = ""  # the built stream's folder, where that is not the stream's own name

    def __hash__(self) -> int:
        return hash((self.experiment.digest, self.root, self.store))


class Site:
    """An experiment opened in this process."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.experiment = place.experiment
        self.store = Store(place.store)
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
        options = {key: value for key, value in experiment.model.items() if key != "name"}
        setting = Setting(
            Architecture(experiment.model["name"], stream.shape, stream.classes, options),
            experiment.train,
            experiment.seed,
            stream.clients,
            stream.experiences,
            self.device,
        )
        return kind(kind.Params(**experiment.method_parameters), setting)

    # states

    def read(self, ref: Ref | None) -> State:
        if ref is None:
            return State()
        content = self.store.get(ref, remember=True)
        return State(content.tensors, content.header["values"])

    def write(self, state: State) -> Ref:
        return self.store.put("states", state.tensors, {"values": dict(state.values)})

    # who sees what, when

    def classes(self, client: int, experience: int) -> tuple[int, ...]:
        """C_i^t; for the centre all classes so far, since it holds all data so far."""
        stream = self.stream
        return stream.seen_by_all(experience) if client == CENTRE else stream.classes_of(client, experience)

    def known(self, client: int, experience: int) -> tuple[int, ...]:
        """C_i^{<t}."""
        if experience == 0 or client == CENTRE:
            return ()
        return self.stream.seen(client, experience - 1)

    def seen(self, client: int, experience: int) -> tuple[int, ...]:
        """C_i^{<=t}; for client -1 over all clients."""
        stream = self.stream
        return stream.seen_by_all(experience) if client == CENTRE else stream.seen(client, experience)

    def rows(self, client: int, experience: int):
        stream = self.stream
        return stream.all_train(experience) if client == CENTRE else stream.train(client, experience)

    def data(self, client: int, experience: int) -> LocalData:
        return self.load(self.rows(client, experience))

    def test(self, client: int, experience: int) -> LocalData:
        """Test samples of an experience: the client's own, or for client -1 everyone's."""
        return self.load(self.stream.test(None if client == CENTRE else client, experience))

    def load(self, rows) -> LocalData:
        return LocalData(self.stream.inputs[rows], self.stream.labels[rows], self.device)


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
