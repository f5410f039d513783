"""Self-centred devices: each trains an expert for its own task, a centre makes one model of the experts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from randomness import generator
from validation import Section

from .base import Method, Upload
from .state import Message, Moment, State, prefixed
from .surrogate import mask
from .training import Batch, Client, Update, cross_entropy, fit

Objective = Callable[[nn.Module, Batch], Tensor]


class Experts(Method):
    """Distributed continual learning: a device talks to the centre to start from its model and to hand in an expert.

        e_t <- f_{t-1},   min CE(e_t) on D_t over C_t          on device t, without any care for other tasks
        f_t <- add(f_{t-1}, e_t)                               at the centre, when the expert arrives; f_1 <- e_1

    Several experts that arrive in the same round started from the same model and are added one after another, in an
    order that is drawn; with `stale` an expert may have started from an even older model. [paper: Carta et al.,
    Projected Latent Distillation for Data-Agnostic Consolidation in Distributed Continual Learning, arXiv 2303.15888;
    ours: how arrival is drawn]

    Subclasses say how an expert is added.
    """

    evaluates: ClassVar = {"global": "server", "multi-head": "server"}  # both are the model at the centre
    told: ClassVar = frozenset({"multi-head"})

    class Params(Section):
        stale: int = Field(0, ge=0, description="consolidations that a device's start may lag behind, drawn evenly")
        transfer: bool = Field(
            True, description="also train each expert from scratch, to measure what the start from the model is worth"
        )

    @property
    def stale(self) -> int:
        return self.params.stale

    def measures(self, client: Client) -> bool:
        """Whether transfer is measured: in the first round, when the model has not yet seen the device's new data."""
        return self.params.transfer and client.received.values["added"] > 0 and client.moment.round == 0

    def start(self) -> State:
        seen = torch.zeros(self.setting.architecture.classes, dtype=torch.bool)
        return State({**prefixed("model", self.setting.initial_model()), "seen": seen}, {"added": 0})

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        most = min(self.stale, max(0, server.values["added"] - 1))
        messages: dict[int, Message] = {}
        ages = {}
        for client in clients:
            draw = generator(self.setting.seed, "client", client, *moment, "stale")
            ages[client] = int(torch.randint(0, most + 1, (), generator=draw))
        for age in set(ages.values()):
            messages[age] = Message(self.held(server, age), {"added": server.values["added"]})
        return {client: messages[ages[client]] for client in clients}

    def held(self, server: State, age: int) -> Mapping[str, Tensor]:
        """What goes down to a device: the model, or the one of `age` consolidations before."""
        return prefixed("model", server.part(f"past-{age}" if age else "model"))

    def train(self, client: Client) -> Update:
        model = self.setting.load(client.received.part("model"))
        loss, steps = self.adapt(client, model, "consolidated", self.objective(client))
        if self.measures(client):
            scratch = self.setting.load(self.setting.initial_model())
            self.adapt(client, scratch, "scratch", Experts.objective(self, client))
        sent = {**prefixed("model", model.state_dict()), "classes": mask(client.classes, len(self.empty))}
        return Update(State(), Message({**sent, **self.besides(client, model)}), model, loss, steps)

    def adapt(self, client: Client, model: nn.Module, start: str, loss: Objective) -> tuple[float, int]:
        """The device's own training, in place."""
        watch = client.watch if self.measures(client) else None
        observe = watch and (lambda epoch: watch(start, epoch, model))
        return fit(model, client, self.setting.train, loss, watch=observe)

    def objective(self, client: Client) -> Objective:
        """The device's loss: cross-entropy over the classes of its task, C_t."""

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return cross_entropy(model(batch.inputs), batch.labels, client.classes)

        return loss

    def besides(self, client: Client, model: nn.Module) -> Mapping[str, Tensor]:
        """What a device hands in besides its expert. Default: nothing."""
        return {}

    @property
    def empty(self) -> Tensor:
        return torch.zeros(self.setting.architecture.classes, dtype=torch.bool)

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        return {**prefixed("model", self.setting.initial_model()), "classes": self.empty}

    def check(self, message: Message) -> None:
        if not message.tensors["classes"].any():
            raise ValueError("an expert has trained on a class (classes names none)")

    # the centre

    def fusion_jobs(self, clients: Sequence[int], moment: Moment) -> tuple[str, ...]:
        return ("experts",)

    def fuse_on(
        self, job: str, server: State, uploads: Sequence[Upload], moment: Moment, begun: State | None
    ) -> Iterator[State]:
        arrived, work = 0, None
        if begun:
            arrived, server = begun.values["arrived"], State(begun.part("server"), begun.values["server"])
            work = State(begun.part("work"), begun.values["work"]) if begun.values["work"] else None
        order = torch.randperm(len(uploads), generator=generator(self.setting.seed, "arrival", *moment)).tolist()
        for number in range(arrived, len(order)):
            upload, added = uploads[order[number]], server
            message = upload.message
            if server.values["added"] == 0:
                added = self.first(server, message)
            else:
                for added in self.add(server, message, (*moment, upload.client), work):
                    if "iteration" in added.values:  # not done yet
                        yield packed(number, server, added)
            server, work = self.remember(server, added, message), None
            if number + 1 < len(order):
                yield packed(number + 1, server, None)
        yield server

    def remember(self, before: State, after: State, message: Message) -> State:
        """The state after an expert was added, with the models before it that a stale device may still start from."""
        tensors = {**after.tensors, "seen": before.tensors["seen"] | message.tensors["classes"]}
        for age in range(1, min(self.stale, before.values["added"]) + 1):
            tensors |= prefixed(f"past-{age}", before.part("model" if age == 1 else f"past-{age - 1}"))
            tensors[f"seen-{age}"] = before.tensors["seen" if age == 1 else f"seen-{age - 1}"]
        return State(tensors, {**before.values, "added": before.values["added"] + 1})

    def first(self, server: State, message: Message) -> State:
        """f_1 <- e_1, to the last bit."""
        return State(prefixed("model", message.part("model")))

    @abstractmethod
    def add(
        self, server: State, message: Message, names: tuple[str | int, ...], begun: State | None
    ) -> Iterator[State]:
        """The centre's next model with an expert's knowledge. A long work yields states with the value `iteration`.

        Args:
            names: of this consolidation's randomness.
            begun: one of those states, to go on from.
        """

    def predictor(self, kind: str, server: State, client: State, holder: int) -> nn.Module:
        return self.setting.load(server.part("model"))


def packed(arrived: int, server: State, work: State | None) -> State:
    """A state to go on from: how many experts have been added, what the centre has, and the work on the next."""
    tensors = {**prefixed("server", server.tensors), **prefixed("work", work.tensors if work else {})}
    values = {"arrived": arrived, "server": dict(server.values), "work": dict(work.values) if work else None}
    return State(tensors, values)
