"""FedBE: adaptive transformer block expansion in federated fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from errors import InputError
from models.expansion import Position, Start
from randomness import generator

from .allocation import Rule, budgets, choose, scores, skew, utility
from .base import Setting, Upload, register
from .cost import Cost, block_forwards, cost
from .fedavg import FedAvg
from .state import Message, Moment, State, prefixed
from .training import Client, Update
from .tuning import FineTuning

SCORE, LABELS = "probe.score", "probe.labels"  # what a probing client sends beside the model
KNOWN = ("scores", "labels", "samples")  # what the server knows of each client's data in this experience
LARGEST = 2**31  # no honest client has as many samples, nor such gradients


@register("fedbe")
class FedBE(FineTuning):
    """Added transformer blocks learn, each client those that its data need and its device can train.

    Model: K copies of F's blocks that change nothing at the start (`models.expansion`); F is frozen.
    Round: for each sampled client i the server chooses blocks S_i under T(S_i) <= kappa median_j T_j(all) and
    M(S_i) <= M_i (`cost.Cost`) with the largest sum over S_i of
        u_ik = (1 - h_i) norm(I)_k + h_i norm(I_i)_k + eta / (1 + cov_k)                 (`allocation`)
        I_ik = || grad_k L_i ||^2 / |theta_k|,   h_i = JS( p_i(y) || p(y) ),   I the mean of I_i by samples
    and sends all blocks and the classifier; the client trains S_i and the classifier and sends these;
        theta_k <- sum_{i: k in S_i} n_i theta_ik / sum_{i: k in S_i} n_i,   as it was where nobody trained k.
    A client probes I_i when it takes part for the first time in an experience, then every R_a rounds; until its first
    probe it counts as one like the mean of all. [ours]

    [paper] expansion, the frozen original, different blocks for different clients, by data and by device, dynamically:
    Huo et al., Mitigating Catastrophic Forgetting with Adaptive Transformer Block Expansion in Federated Fine-Tuning,
    arXiv 2506.05977. [ours] cost, utility, selection and K, since the paper's were not available.
    """

    class Params(FedAvg.Params):
        added: int = Field(3, ge=1, description="K, added blocks; interleaved: a divisor of the network's blocks")
        position: Position = Field("interleaved", description="after every L/K-th block, or top: after the last")
        start: Start = Field("zero", description="of added blocks: zero (they change nothing), or random")
        expansion: bool = Field(True, description="false: the K top blocks are trained in place (an ablation)")
        allocation: Rule = Field(
            "dynamic", description="by data and device, all blocks, a random subset, by device alone, by data alone"
        )
        unassigned: Literal["used", "skipped"] = Field("used", description="by a client: blocks that it does not train")
        kappa: float = Field(1.0, gt=0, description="time budget, as a share of the median time that all blocks take")
        eta: float = Field(0.1, ge=0, description="weight of coverage")
        refresh: int = Field(3, ge=1, description="R_a, rounds after which a client probes its scores again")
        probes: int = Field(1, ge=1, description="minibatches of a probe")

    def __init__(self, params: Params, setting: Setting) -> None:
        if not params.expansion and params.unassigned == "skipped":
            raise InputError(f"methods.{self.name}.unassigned: skipped needs expansion: true (got false)")
        try:
            super().__init__(params, setting)
        except InputError as error:
            raise InputError(
                f"methods.{self.name}.{error}" if str(error).startswith("added ") else str(error)
            ) from None
        template = self.setting.architecture.template
        self.units = list(template.units)  # names of the K blocks, from the bottom

    @classmethod
    def part_of(cls, params: Params) -> str:
        return "blocks" if params.expansion else "top_blocks"

    @classmethod
    def options(cls, params: Params) -> dict[str, Any]:
        where = {"position": params.position, "start": params.start} if params.expansion else {}
        return {"added": params.added, **where}

    @cached_property
    def cost(self) -> Cost:
        return cost(self.setting.architecture.template, self.setting.train)

    # the server

    def start(self) -> State:
        state, clients, classes = super().start(), self.setting.clients, self.setting.architecture.classes
        empty = {"scores": torch.zeros(clients, len(self.units)), "labels": torch.zeros(clients, classes).long()}
        empty["samples"] = torch.zeros(clients).long()
        return State({**state.tensors, **empty}, {"probed": [None] * clients, "choices": {}})

    def prepare(self, server: State, clients: Sequence[int], moment: Moment) -> State:
        """Chooses S_i for the round's clients, one after another in a drawn order."""
        params, setting, labels = self.params, self.setting, server.tensors["labels"]
        scores, samples = (server.tensors[name].double() for name in ("scores", "samples"))
        known, everyones = samples * (labels.sum(dim=1) > 0), labels.sum(dim=0)
        mean = known @ scores / known.sum().clamp(min=1)
        counts = torch.where(samples > 0, samples, samples[samples > 0].mean() if samples.any() else 1.0).tolist()
        speeds = [device.speed for device in setting.devices]
        limits = budgets(self.cost, counts, speeds, setting.train.batch_size, params.kappa)
        draw = generator(setting.seed, "server", "allocation", *moment)
        covered, choices = torch.zeros(len(self.units), dtype=torch.float64), {}
        for client in (clients[place] for place in torch.randperm(len(clients), generator=draw).tolist()):
            h, memory = skew(labels[client], everyones), setting.devices[client].memory * self.cost.all[1]
            u = utility(scores[client], mean, h, covered, params.eta)
            choices[client] = choose(params.allocation, u, h, self.cost, limits[client], memory, draw)
            covered[list(choices[client].blocks)] += counts[client]
        told = {str(client): choices[client].told() for client in sorted(choices)}
        return State(server.tensors, {**server.values, "choices": told})

    def tables(self, server: State, moment: Moment) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """`allocation`, a row for each client and block: whether it trains the block, and why."""
        rows = []
        for client, choice in server.values["choices"].items():
            common = {name: choice[name] for name in ("skew", "time", "time_budget", "memory", "memory_budget", "fits")}
            common["speed"] = self.setting.devices[int(client)].speed
            for k, u in enumerate(choice["utility"]):
                about = {"client": int(client), "block": k, "trains": k in choice["blocks"], "utility": u}
                rows.append({**about, **common})
        return {"allocation": rows}

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        """All blocks and the classifier to everyone, and to each its S_i; one message for clients with the same."""
        model, known, messages = prefixed("model", server.part("model")), {}, {}
        for client in clients:
            blocks, probes = list(server.values["choices"][str(client)]["blocks"]), self.probes(server, client, moment)
            key = (*blocks, probes)
            known.setdefault(key, Message(model, {"blocks": blocks, "probes": probes}))
            messages[client] = known[key]
        return messages

    def probes(self, server: State, client: int, moment: Moment) -> bool:
        """Whether the client's scores are to be refreshed in this round; never where nobody looks at them."""
        if self.params.allocation not in ("dynamic", "data"):
            return False
        last = server.values["probed"][client]
        return last is None or moment.round - last >= self.params.refresh

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        chosen = server.values["choices"][str(client)]["blocks"]
        left = tuple(f"model.{name}." for k, name in enumerate(self.units) if k not in chosen)
        model = super().expects(server, client, moment)
        model = {name: each for name, each in model.items() if not name.startswith(left)}
        if not self.probes(server, client, moment):
            return model
        return {**model, SCORE: server.tensors["scores"][client], LABELS: server.tensors["labels"][client]}

    def check(self, message: Message) -> None:
        for name in (SCORE, LABELS):
            if name in message.tensors and not ((message.tensors[name] >= 0) & (message.tensors[name] < LARGEST)).all():
                raise ValueError(f"{name} must be from 0 to below {LARGEST:g}")

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        fused = super().fuse(job, server, uploads, moment)
        tables = {name: server.tensors[name].clone() for name in KNOWN}
        probed = list(server.values["probed"])
        for upload in uploads:
            tensors, client = upload.message.tensors, upload.client
            tables["samples"][client] = upload.samples
            if SCORE in tensors and tensors[LABELS].sum() == upload.samples:  # else it is asked again
                tables["scores"][client], tables["labels"][client] = tensors[SCORE], tensors[LABELS]
                probed[client] = moment.round
        kept = {name: each for name, each in fused.tensors.items() if name not in (SCORE, LABELS)}
        return State({**kept, **tables}, {**fused.values, "probed": probed})

    def end_experience(self, server: State, experience: int) -> State:
        """What the data of this experience needed says nothing about those of the next."""
        fresh = self.start()
        return State({**server.tensors, **{name: fresh.tensors[name] for name in KNOWN}}, fresh.values)

    # the client

    def begin(self, client: Client) -> nn.Module:
        model = super().begin(client)
        for k, unit in enumerate(model.units.values()):
            chosen = k in client.received.values["blocks"]
            unit.requires_grad_(chosen)
            unit.on = chosen or self.params.unassigned == "used"
        return model

    def train(self, client: Client) -> Update:
        update = super().train(client)
        if not client.received.values["probes"]:
            return update
        model = super().begin(client)
        batches = client.data.shuffled(self.setting.train.batch_size, 1, client.generator("probe"))
        probes = list(islice(batches, self.params.probes))
        score = scores(model, list(model.units.values()), self.objective(client), probes)
        labels = torch.bincount(client.data.labels, minlength=self.setting.architecture.classes).cpu()
        message = Message({**update.message.tensors, SCORE: score, LABELS: labels})
        time = len(probes) * block_forwards(model) / self.setting.devices[client.id].speed
        return replace(update, message=message, time=update.time + time)
