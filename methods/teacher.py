"""What the last experience left, sent to every client once: shared by the methods that distil from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from .base import Upload
from .fedavg import FedAvg
from .state import Message, Moment, State, prefixed
from .training import Client, Update


class Taught(FedAvg):
    """FedAvg whose clients hold the global model as it was when the last experience ended: theta^{t-1}, the teacher.

    The lesson is the teacher and what else a method names in `lesson`. It goes down once per client and experience, and
    the client keeps it until the next one comes; a client that takes part late, or whose round was lost, receives it
    then. In round 0 the model that goes down is theta^{t-1} itself, which so costs nothing. [ours]

    Which lesson a client holds is decided by the server's experience, not by the client's own, which may lag behind.
    """

    lesson: ClassVar[tuple[str, ...]] = ("previous",)  # parts of the server's state; `previous` is the teacher

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        messages = dict(super().broadcast(server, clients, moment))
        if not server.part("previous"):
            return messages
        parts = [part for part in self.lesson if part != "previous" or moment.round > 0]
        more = {name: tensor for part in parts for name, tensor in prefixed(part, server.part(part)).items()}
        both = Message({**prefixed("model", server.part("model")), **more}, {"lesson": True})
        return messages | {client: both for client in clients if client not in server.values["holders"]}

    def train(self, client: Client) -> Update:
        update = super().train(client)
        state = State({**update.state.tensors, **self.taught(client)}, update.state.values)
        return replace(update, state=state)

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        fused = super().fuse(job, server, uploads, moment)
        if not server.part("previous"):
            return fused
        holders = sorted({*server.values["holders"], *(upload.client for upload in uploads)})
        return State(fused.tensors, {**server.values, "holders": holders})

    def end_experience(self, server: State, experience: int) -> State:
        previous = prefixed("previous", server.part("model"))
        return State({**server.tensors, **previous}, {**server.values, "holders": []})

    def taught(self, client: Client) -> dict[str, Tensor]:
        """The tensors of the lesson that the client received or kept; none before the first has come."""
        sent = bool(client.received.values.get("lesson"))
        source = client.received if sent else client.state
        lesson = {name: tensor for part in self.lesson for name, tensor in prefixed(part, source.part(part)).items()}
        if sent and not source.part("previous"):
            lesson |= prefixed("previous", source.part("model"))
        return lesson

    def teacher(self, client: Client) -> dict[str, Tensor]:
        """theta^{t-1}; nothing before the end of the first experience."""
        return State(self.taught(client)).part("previous")
