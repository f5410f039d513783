"""Large-small model collaboration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.adapted import Adapted, Collaborative
from randomness import generator

from .aggregation import weighted_mean
from .assistance import Psi, Public, class_means
from .base import Method, Setting, Upload, register
from .collaboration import Collaboration
from .enrichment import enrich
from .exchange import Views, learn_lessons
from .fine_tuning import fine_tune
from .one_by_one import View, at_once, lessons, pack, unpack
from .state import Message, Moment, State, prefixed
from .surrogate import logits_on, mask, surrogate
from .training import Client, LocalData, Update


@register("large_small")
class LargeSmall(Method):
    """A foundation model assists the clients' small models; these teach each other, and it, at the server.

    Client i in experience t, small model continual fine-tuning (`fine_tuning.py`):
        L = CE( theta on C_i^t ) + alpha tau^2 KL( p_F || p_theta ) on C_i^{<=t}
          + beta tau^2 KL( p_{theta_i^{t-1}} || p_theta ) on C_i^{<t}
          + gamma sum_k Omega_k (theta_k - theta_{i,k}^{t-1})^2
    Server after every round, one-by-one distillation on a surrogate set (`one_by_one.py`):
        r2: each small model learns from every other one in turn, anchored to itself, and goes back to its client
        r1: psi, the trainable part of F, learns from every small model in turn, anchored to itself
    Inference: the small model, F with psi, and both together (`models.adapted.Collaborative`).

    [paper] the setting, the two components, heterogeneous small models, one teacher after another. [ours] every
    formula, since the paper's were not available: Yu et al., Large-Small Model Collaborative Framework for Federated
    Continual Learning, arXiv 2508.09489.
    """

    evaluates: ClassVar = {"collaborative": "client", "small": "client", "foundation": "client"}
    heterogeneous = True
    needs_public = True
    needs_foundation = True

    Params = Collaboration

    def __init__(self, params: Collaboration, setting: Setting) -> None:
        super().__init__(params, setting)
        params.check(setting)
        self.classes = setting.architecture.classes
        self.teaches = params.fusion in ("r1", "both")  # the foundation model is taught
        self.views = Views(setting, lambda: self.surrogate, params.send)

    @cached_property
    def surrogate(self) -> LocalData:
        return surrogate(self.params.surrogate, self.setting)

    @cached_property
    def public(self) -> Public:
        return Public(self.surrogate, logits_on(self.setting.foundation().backbone, self.surrogate))

    def adapted(self, psi: Mapping[str, Tensor]) -> Adapted:
        """F with its trainable part; the initial one where `psi` is empty. `taught`, that goes with psi, is not F's."""
        params, setting = self.params, self.setting
        model = Adapted(setting.foundation(), self.classes, params.part, setting.seed, rank=params.rank)
        return model.load_psi({name: each for name, each in psi.items() if name != "taught"}) if psi else model

    # the server

    def start(self) -> State:
        """Reads D_s, so that a run that cannot have it is refused here."""
        _ = self.surrogate
        if not self.teaches:
            return State()
        psi = {**self.adapted({}).psi(), "taught": torch.zeros(self.classes, dtype=torch.bool)}
        return State(prefixed("psi", psi), {"holders": []})

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        """The client's fused model (or its lessons), and once an experience what psi was when the last one ended."""
        messages: dict[int, Message | None] = {}
        for client in clients:
            fused, holders = self.fused(server, client), server.values.get("holders", [])
            tensors = {**fused.tensors, **({} if client in holders else prefixed("psi", server.part("sent")))}
            messages[client] = Message(tensors, fused.values) if tensors else None
        return messages

    def fused(self, server: State, client: int) -> State:
        """What the last fusion made for a client."""
        own = server.part(f"client-{client}") or server.part("average")
        return State(prefixed("fused", own), server.values.get(f"client-{client}", {}))

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        if self.params.fusion == "none":
            return {}
        own = {"logits": torch.zeros(len(self.surrogate), self.classes)}
        if self.params.send == "weights":
            own = prefixed("model", self.setting.initial_model(self.setting.place(client)))
        return {**own, "seen": torch.zeros(self.classes, dtype=torch.bool)}

    def check(self, message: Message) -> None:
        if not message.tensors["seen"].any():
            raise ValueError("a client that has trained has seen a class (seen names none)")

    def fusion_jobs(self, clients: Sequence[int], moment: Moment) -> tuple[str, ...]:
        """One job for each student."""
        fusion = self.params.fusion
        students = [f"client-{client}" for client in clients] if fusion in ("r2", "both", "all_at_once") else []
        return (*students, *["foundation"] * self.teaches, *["average"] * (fusion == "average"))

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        if job == "average":
            return State(prefixed("average.model", State(weighted_mean(uploads)).part("model")))
        draw = generator(self.setting.seed, "server", job, *moment)
        views = {upload.client: self.views(upload, moment) for upload in uploads}
        if job == "foundation":
            return self.taught(server, views, draw)
        client, params = int(job.removeprefix("client-")), self.params.distillation
        student = views.pop(client)
        found = lessons(student, list(views.values()), params.weights, params.order, draw)
        found = at_once(found) if self.params.fusion == "all_at_once" else found
        if self.params.send == "logits":  # the client will learn them itself
            about = {"lessons": [[each.weight, each.visits] for each in found], "moment": list(moment)}
            return State(prefixed(job, pack(found)), {job: about})
        (own,) = (upload for upload in uploads if upload.client == client)
        model = self.setting.load(own.message.part("model"), client)
        learn_lessons(model, student, found, self.surrogate, self.params, draw)
        return State(prefixed(f"{job}.model", model.state_dict()))

    def taught(self, server: State, views: Mapping[int, View], draw: torch.Generator) -> State:
        """R1: psi after every client has taught it."""
        adapted, known = self.adapted(server.part("psi")), server.part("psi")["taught"].to(self.setting.device)
        labelled = self.params.surrogate.labelled
        known = enrich(adapted, self.public, list(views.values()), known, self.params.distillation, labelled, draw)
        holders = sorted({*server.values["holders"], *views})
        return State(prefixed("psi", {**adapted.psi(), "taught": known}), {"holders": holders})

    def join(self, server: State, parts: Mapping[str, State], moment: Moment) -> State:
        kept = {name: each for name, each in server.tensors.items() if name.partition(".")[0] not in parts}
        tensors = {name: each for part in parts.values() for name, each in part.tensors.items()}
        values = {name: each for part in parts.values() for name, each in part.values.items()}
        return State({**kept, **tensors}, {**server.values, **values})

    def end_experience(self, server: State, experience: int) -> State:
        """psi goes down once, when an experience has ended."""
        if not self.teaches:
            return server
        return State({**server.tensors, **prefixed("sent", server.part("psi"))}, {**server.values, "holders": []})

    # the client

    def start_client(self, client: int) -> State:
        return State(prefixed("model", self.setting.initial_model(self.setting.place(client))))

    def train(self, client: Client) -> Update:
        received = client.received or Message()
        model = self.small(received, client.state, client.id)
        psi = received.part("psi") or client.state.part("psi")
        told = Psi(self.adapted(psi), psi["taught"]) if psi and self.params.classifier == "psi" else None
        state, loss, steps = fine_tune(client, model, self.params, self.setting, told, self.public)
        kept = State({**state.tensors, **prefixed("psi", psi), **prefixed("model", model.state_dict())}, state.values)
        if self.params.fusion == "none":
            return Update(kept, None, model, loss, steps)
        own = prefixed("model", model.state_dict())
        sent = own if self.params.send == "weights" else {"logits": logits_on(model, self.surrogate).cpu()}
        return Update(kept, Message({**sent, "seen": mask(kept.values["seen"], self.classes)}), model, loss, steps)

    def small(self, received: State, own: State, client: int) -> nn.Module:
        """The client's small model as the last fusion made it; where lessons came, it learns them here."""
        fused = State(received.part("fused"), received.values)
        model = self.setting.load(fused.part("model") or own.part("model"), client)
        found = unpack(fused, self.setting.device)
        if found:
            before = View(logits_on(model, self.surrogate), mask(own.values["seen"], self.classes))
            draw = generator(self.setting.seed, "server", f"client-{client}", *fused.values["moment"], "lessons")
            learn_lessons(model, before, found, self.surrogate, self.params, draw)
        return model

    # what is measured

    def predictor(self, kind: str, server: State, client: State, holder: int) -> nn.Module:
        small = self.small(self.fused(server, holder), client, holder)
        if kind == "small":
            return small
        large: nn.Module = self.adapted(server.part("sent"))
        if not self.teaches and "seen" in client.values:
            large = class_means(client, self.setting.foundation(), self.params.sharpness, self.setting.device)
        own = mask(client.values.get("seen", range(self.classes)), self.classes).to(self.setting.device)
        return large if kind == "foundation" else Collaborative(small, large, own)

    def general(self, server: State) -> Mapping[str, nn.Module]:
        return self.adapted(server.part("sent") if self.teaches else {}).general()
