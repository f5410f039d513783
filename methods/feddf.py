"""Ensemble distillation on public data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from errors import InputError
from randomness import generator

from .aggregation import weighted_mean
from .base import Setting, Upload, register
from .fedavg import FedAvg
from .state import Message, Moment, State, prefixed
from .training import Client, LocalData, Update, distillation

BATCH = 512  # samples at a time where no gradients are needed


@register("feddf")
class FedDF(FedAvg):
    """FedAvg whose server distils the clients' mean prediction into the averaged model, with public data.

        x_p <- sum_{i in S_p} n_i theta_i / sum_{i in S_p} n_i              for every architecture p
        x_p <- Adam step on  KL( softmax(mean_{i in S} F_i(d)) || softmax(F_p(d)) ),   d public, `steps` times

    Lin et al., NeurIPS 2020, the heterogeneous algorithm; AVGLOGITS: the teacher is the plain mean of all clients'
    logits, whatever their architecture. Labels of the public samples are never looked at. Adam with a cosine
    annealed step size as in the paper, a fixed number of steps instead of up to 10,000 with early stopping on
    validation data, which a server has not [ours]. An architecture none of whose clients took part starts from its
    model of the round before [ours].

    Teacher and student are compared over the classes that some client has seen [ours: nobody has trained the logits of
    the others]; clients say which these are, and the server remembers. Without steps, and with one architecture, this
    is FedAvg.

    `global` is the server's own network, the first. Where there are several, `personal` is what a client would use:
    the server's model of the client's architecture, on the client's own test data.
    """

    heterogeneous = True
    needs_public = True

    class Params(FedAvg.Params):
        steps: int = Field(100, ge=0, description="distillation steps in a round; 0 is none")
        batch_size: int = Field(128, ge=2, description="public samples in a step")
        learning_rate: float = Field(0.001, gt=0, description="first step size of Adam, annealed to 0 (cosine)")

    def __init__(self, params: Params, setting: Setting) -> None:
        super().__init__(params, setting)
        if len(setting.architectures) > 1:
            self.evaluates = {"global": "server", "personal": "client"}

    def start(self) -> State:
        if not len(self.setting.public()):
            raise InputError(f"streams.*.public: the public split is empty (got 0 samples); {self.name} learns from it")
        places = range(len(self.setting.architectures))
        models = {name: w for p in places for name, w in prefixed(whose(p), self.setting.initial_model(p)).items()}
        return State({**models, "seen": torch.zeros(self.setting.architecture.classes, dtype=torch.bool)})

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        places = {self.setting.place(client) for client in clients}
        messages = {place: Message(prefixed("model", server.part(whose(place)))) for place in places}
        return {client: messages[self.setting.place(client)] for client in clients}

    def train(self, client: Client) -> Update:
        update = super().train(client)
        seen = torch.zeros(self.setting.architecture.classes, dtype=torch.bool)
        seen[list(client.seen)] = True
        message = Message({**update.message.tensors, "seen": seen})
        return Update(update.state, message, update.model, update.loss, update.steps)

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        model = server.part(whose(self.setting.place(client)))
        return {**prefixed("model", model), "seen": server.tensors["seen"]}

    def check(self, message: Message) -> None:
        if not message.tensors["seen"].any():
            raise ValueError("a client that has trained has seen a class (seen names none)")

    def fusion_jobs(self, clients: Sequence[int], moment: Moment) -> tuple[str, ...]:
        return tuple(whose(place) for place in range(len(self.setting.architectures)))

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        """The next model of one architecture, and the classes seen so far."""
        place = int(job.removeprefix(whose("")))
        seen = server.tensors["seen"]
        for upload in uploads:
            seen = seen | upload.message.tensors["seen"]
        kin = [upload for upload in uploads if self.setting.place(upload.client) == place]
        model = State(weighted_mean(kin)).part("model") if kin else server.part(job)
        if self.params.steps:
            draw = generator(self.setting.seed, "server", job, *moment)
            model = self.distilled(model, place, uploads, seen.nonzero().flatten().tolist(), draw)
        return State({**prefixed(job, model), "seen": seen})

    def join(self, server: State, parts: Mapping[str, State], moment: Moment) -> State:
        return State({name: tensor for part in parts.values() for name, tensor in part.tensors.items()})

    def distilled(
        self, tensors: Mapping[str, Tensor], place: int, uploads: Sequence[Upload], classes: list[int], draw
    ) -> Mapping[str, Tensor]:
        """The model `tensors` of architecture `place` after `steps` steps towards the uploads' mean logits."""
        public, params = self.setting.public(), self.params
        teacher = self.mean_logits(uploads, public)
        student = self.setting.architectures[place].load(tensors, self.setting.device).train()
        adam = torch.optim.Adam(student.parameters(), lr=params.learning_rate, fused=True)
        annealing = torch.optim.lr_scheduler.CosineAnnealingLR(adam, params.steps)
        for rows in draws(len(public), params.batch_size, params.steps, draw):
            rows = rows.to(teacher.device)
            loss = distillation(student(public.batch(rows).inputs), teacher[rows], classes, temperature=1.0)
            adam.zero_grad()
            loss.backward()
            adam.step()
            annealing.step()
        return student.state_dict()

    @torch.no_grad()
    def mean_logits(self, uploads: Sequence[Upload], public: LocalData) -> Tensor:
        """mean_i F_i(d), (public samples, classes); one model in memory at a time."""
        total = torch.zeros(len(public), self.setting.architecture.classes, device=self.setting.device)
        for upload in uploads:
            model = self.setting.load(upload.message.part("model"), upload.client).eval()
            total += torch.cat([model(batch.inputs) for batch in public.batches(BATCH)])
        return total / len(uploads)

    def predictor(self, kind: str, server: State, client: State, holder: int) -> nn.Module:
        return self.setting.load(server.part(whose(self.setting.place(holder))), holder)


def whose(place: int | str) -> str:
    """The name of an architecture's model in the server's state, and of the job that makes it."""
    return f"model-{place}"


def draws(count: int, size: int, steps: int, draw: torch.Generator) -> Iterator[Tensor]:
    """`steps` batches of `size` rows of 0..count-1: pass after pass, each in an order of its own."""
    passes = math.ceil(steps * size / count)
    order = torch.cat([torch.randperm(count, generator=draw) for _ in range(passes)])
    return iter(order[: steps * size].split(size))
