"""Federated weighted inter-client transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.experts import MostConfident
from randomness import generator

from .base import Method, Setting, Upload, register
from .decomposition import Decomposed, Layout
from .sparse import Entries, Units
from .state import Message, Moment, State, prefixed
from .training import Batch, Client, Update, cross_entropy, fit


@register("fedweit")
class FedWeIT(Method):
    """A shared base, sparse weights of each experience, and a weighted choice of other clients' ones.

        theta^t = B (*) m^t + A^t + sum_j alpha_j^t A_j
        min   CE( theta^t; D^t ) + lambda1 |{m^t, A^1..A^t}|_1 + lambda2 sum_{s<t} | dB (*) m^s + dA^s |^2

    Yoon et al., ICML 2021. B goes up where m, one number a unit, is large, and its mean comes down in every round; A_j
    are other clients' A of earlier experiences; dB and dA are what has changed since the client's last round.

    The last two terms are least in A^s at  A^s <- S( B_last (*) m^s + A^s_last - B (*) m^s, lambda1 / (2 lambda2) ),
    S the soft threshold. A^s is set so, instead of by gradient steps, which lambda2 = 100 makes diverge at the common
    step size; what remains of the terms pulls B by at most lambda1 |m^s| [ours]. So each round restores earlier
    experiences' weights to lambda1 / (2 lambda2), and what they cost is memory: A^s does not stay sparse on the client.
    The released code leaves the earlier A^s as they are and holds B alone. lambda1 is a tenth of the authors', who
    train with Adam: for plain gradients their 0.001 is too much [ours].

    What is sent: of each weight the units with the largest |m| [code], of A the largest entries, in an experience's
    last round, if another follows. Their share is fixed, so that the server can check sizes and places [ours: the
    authors' A is cut where |A| <= lambda1]. The server's base is, unit by unit, the mean over those who sent the unit,
    weighted by their samples. A client gets `knowledge` of the A_j, drawn by lot, once in an experience; alpha starts
    from 0, A from 0 and m from 1, so that training starts at the base [ours]. Heads, biases and normalisation belong
    to a client and an experience and stay where they are [code].

    How it is evaluated: each client's own models on its own test data. The paper knows a test sample's experience and
    takes its theta and head; a task-incremental stream's candidates say the same. In other streams the most confident
    of the theta^1..theta^t decides, each trained on its own experience's classes alone [ours, see MostConfident].
    """

    evaluates: ClassVar = {"personal": "client"}

    class Params(Method.Params):
        sparsity: float = Field(1e-4, ge=0, description="lambda1, weight of |m| + |A|")
        drift: float = Field(100.0, gt=0, description="lambda2, weight of earlier experiences' change")
        base: float = Field(0.7, gt=0, le=1, description="share of each weight's units that a client sends")
        adaptive: float = Field(0.03, gt=0, le=1, description="share of A's entries that a client sends")
        knowledge: int = Field(5, ge=0, description="others' A that a client gets in an experience, at most")

    def __init__(self, params: Params, setting: Setting) -> None:
        super().__init__(params, setting)
        self.layout = Layout.of(setting.architecture.load(setting.initial_model()))
        self.sent_base = Units(self.layout, params.base)
        self.sent_adaptive = Entries(self.layout.numbers, params.adaptive)

    # the server's side

    def start(self) -> State:
        return State({"base": self.layout.vector(self.setting.initial_model())}, {"holders": []})

    def asks(self, moment: Moment) -> bool:
        """Whether clients send A: in an experience's last round, if another experience follows."""
        return moment.round == self.setting.train.rounds - 1 and moment.experience < self.setting.experiences - 1

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        base, asked = {"base": server.tensors["base"]}, {"adaptive": True} if self.asks(moment) else {}
        messages = dict.fromkeys(clients, Message(base, asked))
        for client in clients:
            if client not in server.values["holders"] and (known := self.drawn(server, client, moment)):
                messages[client] = Message({**base, **known}, asked)
        return messages

    def drawn(self, server: State, client: int, moment: Moment) -> dict[str, Tensor]:
        """`knowledge.NUMBER.values` and `.places` of others' A of earlier experiences, by lot."""
        names = {name.rpartition(".")[0] for name in server.tensors if name.startswith("knowledge.")}
        others = sorted(name for name in names if not name.endswith(f".{client}"))
        draw = generator(self.setting.seed, "server", "knowledge", moment.experience, "client", client)
        chosen = torch.randperm(len(others), generator=draw)[: self.params.knowledge].tolist()
        found = [prefixed(f"knowledge.{place}", server.part(others[number])) for place, number in enumerate(chosen)]
        return {name: each for parts in found for name, each in parts.items()}

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        adaptive = prefixed("adaptive", self.sent_adaptive.template()) if self.asks(moment) else {}
        return {**prefixed("base", self.sent_base.template()), **adaptive}

    def check(self, message: Message) -> None:
        self.sent_base.check(message.tensors["base.places"])
        if adaptive := message.part("adaptive"):
            self.sent_adaptive.check(adaptive["places"])

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        total, weight = torch.zeros(2, self.layout.numbers, dtype=torch.float64)
        known = {}
        for upload in uploads:
            message = upload.message
            where = self.sent_base.numbers(message.tensors["base.places"])
            total[where] += message.tensors["base.values"].double() * upload.samples
            weight[where] += upload.samples
            known |= prefixed(f"knowledge.{moment.experience}.{upload.client}", message.part("adaptive"))
        base = torch.where(weight > 0, total / weight.clamp(min=1), server.tensors["base"]).float()
        holders = sorted({*server.values["holders"], *(upload.client for upload in uploads)})
        return State({**server.tensors, "base": base, **known}, {"holders": holders})

    def end_experience(self, server: State, experience: int) -> State:
        return State(server.tensors, {"holders": []})

    # the client's side

    def start_client(self, client: int) -> State:
        return State({}, {"classes": {}})

    def train(self, client: Client) -> Update:
        now, state = str(client.moment.experience), self.opened(client)
        model = self.decomposed(state, now, client.received.tensors["base"])
        past = [s for s in experiences(state) if s != now]
        masks = self.layout.rows(self.layout.spread(state.tensors[f"{s}.mask"]) for s in past)
        last = state.tensors.get("base", client.received.tensors["base"])
        was = masks * last + self.layout.rows(state.tensors[f"{s}.adaptive"] for s in past)
        masks, was = masks.to(self.setting.device), was.to(self.setting.device)
        loss, steps = fit(model, client, self.setting.train, self.objective(client, masks, was))
        with torch.no_grad():
            restored = self.shrunk(was - masks * model.base)
        new = {"mask": model.mask, "adaptive": model.adaptive, "transfer": model.transferred()}
        new |= prefixed("local", self.layout.rest(model.network.state_dict()))
        tensors = {**state.tensors, **prefixed(now, new), "base": model.base.detach().cpu()}
        tensors |= {f"{s}.adaptive": each.cpu() for s, each in zip(past, restored, strict=True)}
        sent = prefixed("base", self.sent_base.encode(tensors["base"], tensors[f"{now}.mask"]))
        if "adaptive" in client.received.values:
            sent |= prefixed("adaptive", self.sent_adaptive.encode(tensors[f"{now}.adaptive"]))
        kept = State(tensors, state.values)
        return Update(kept, Message(sent), self.deciding(kept), loss, steps)

    def opened(self, client: Client) -> State:
        """The client's state with the knowledge just received and a place for this experience."""
        now, tensors = str(client.moment.experience), dict(client.state.tensors)
        if fresh := client.received.part("knowledge"):
            tensors = {name: each for name, each in tensors.items() if not name.startswith("knowledge.")}
            tensors |= prefixed("knowledge", fresh)
        if now not in client.state.values["classes"]:
            nothing = torch.zeros(self.layout.numbers)
            tensors |= {f"{now}.adaptive": nothing, f"{now}.transfer": nothing}
            tensors[f"{now}.mask"] = torch.ones(sum(self.layout.units))
            tensors |= prefixed(f"{now}.local", self.layout.rest(self.setting.initial_model()))
        return State(tensors, {"classes": {**client.state.values["classes"], now: list(client.classes)}})

    def objective(self, client: Client, masks: Tensor, was: Tensor):
        """The paper's, at the best A^s for the B at hand; by past experience, masks are m^s, was B (*) m^s + A^s."""

        def loss(model: Decomposed, batch: Batch) -> Tensor:
            plain = cross_entropy(model(batch.inputs), batch.labels, client.classes)
            missing = was - masks * model.base
            past = self.shrunk(missing)
            sparse = model.mask.abs().sum() + model.adaptive.abs().sum() + past.abs().sum()
            return plain + self.params.sparsity * sparse + self.params.drift * (past - missing).square().sum()

        return loss

    def shrunk(self, missing: Tensor) -> Tensor:
        """argmin over A of lambda1 |A| + lambda2 |A - missing|^2."""
        return F.softshrink(missing, self.params.sparsity / (2 * self.params.drift))

    def decomposed(self, state: State, now: str, base: Tensor) -> Decomposed:
        own, device = State(state.part(now)), self.setting.device
        network = self.setting.load({**own.part("local"), **self.layout.tensors(base)})
        parts = [base, *(own.tensors[name] for name in ("mask", "adaptive", "transfer"))]
        sources = sorted({name.rpartition(".")[0] for name in state.tensors if name.startswith("knowledge.")})
        knowledge = self.layout.rows(self.sent_adaptive.decode(state.part(source)) for source in sources)
        return Decomposed(self.layout, network, *(part.to(device) for part in [*parts, knowledge]))

    def deciding(self, state: State) -> nn.Module:
        """The networks theta^s of the experiences that the client has trained in, each for its classes."""
        seen = experiences(state)
        known = torch.zeros(len(seen), self.setting.architecture.classes, dtype=torch.bool)
        networks = []
        for place, s in enumerate(seen):
            own = State(state.part(s))
            mask = self.layout.spread(own.tensors["mask"])
            theta = state.tensors["base"] * mask + own.tensors["adaptive"] + own.tensors["transfer"]
            networks.append(self.setting.load({**own.part("local"), **self.layout.tensors(theta)}))
            known[place, state.values["classes"][s]] = True
        return MostConfident(networks, known.to(self.setting.device))

    def predictor(self, kind: str, server: State, client: State, holder: int) -> nn.Module:
        return self.deciding(client) if experiences(client) else self.setting.load(self.setting.initial_model())


def experiences(state: State) -> list[str]:
    """Those that a client has trained in, in their order."""
    return sorted(state.values["classes"], key=int)
