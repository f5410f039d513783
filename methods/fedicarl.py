"""iCaRL, federated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.prototypes import NearestPrototype

from .base import Upload, register
from .exemplars import herded, keeping, rehearsing, unit_features
from .fedavg import FedAvg
from .fedlwf import FedLwF
from .memory import Memory
from .state import Message, Moment, State
from .training import Batch, Client, Update


@register("fedicarl")
class FedICaRL(FedLwF):
    """iCaRL: herded exemplars, distillation, and classification by the nearest mean of exemplars.

        L = sum_{y in C^t} BCE( g_y(x), [y = label] ) + sum_{y in C^{<t}} BCE( g_y(x), g_y^{t-1}(x) )
            over the experience's samples and the exemplars of earlier ones;  g = sigmoid(logit)
        y* = argmin_y || f(x) - mu_y ||,   mu_y the mean of f over the exemplars of y;  ||f|| = 1
                                            Rebuffi et al., CVPR 2017, section 2 and algorithms 1 to 5

    g^{t-1} is the global model at the end of the previous experience. As in the paper, old classes learn from it
    alone, exemplars included; an old class that comes again (domain-incremental) learns from labels. [ours]

    In federation: a client's exemplars (`budget` in all, equal shares for its classes) stay with it. After each
    training it herds those of the current experience anew, in the features of its model, and uploads with the model
    the sum of its exemplars' features and their number by class; the server divides the sums of all clients, so that
    mu_y is a mean over everyone's exemplars and the classifier is the server's. A class of which no exemplar came
    keeps its mean. [ours: a client's own exemplars know its own classes only] The server refuses counts above the
    budget, and sums longer than so many features can be. [ours] The mean features of a class cross, of a class with
    one exemplar that exemplar's. The features are those of the models before fusion, the classifier's network is the
    fused one: computing them anew would take another round. [ours] The kind `head` is the same network
    with its sigmoid outputs. The paper's budget is 2000 for 100 classes; here it is as in fedder.
    """

    evaluates: ClassVar = {"global": "server", "head": "server"}

    class Params(FedAvg.Params):
        budget: int = Field(100, ge=1, description="exemplars of each client, shared by its classes")

    def start(self) -> State:
        state, architecture = super().start(), self.setting.architecture
        means = torch.zeros(architecture.classes, self.setting.load(state.part("model")).width)
        return State({**state.tensors, "exemplars.means": means, "exemplars.known": torch.zeros(len(means)).bool()})

    def train(self, client: Client) -> Update:
        update = super().train(rehearsing(client))
        memory = herded(client, update.model, self.params.budget)
        sums, counts = self.sums(update.model, memory)
        message = Message({**update.message.tensors, "exemplars.sums": sums, "exemplars.counts": counts})
        return Update(keeping(update.state, memory), message, update.model, update.loss, update.steps)

    def objective(self, client: Client):
        new = torch.tensor(client.classes, device=client.data.labels.device)
        old = torch.tensor(sorted({*client.known} - {*client.classes}), device=new.device, dtype=torch.long)
        teacher = self.setting.load(self.teacher(client)).eval() if len(old) else None

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            logits = model(batch.inputs)
            one_hot = (batch.labels[:, None] == new).float()
            total = F.binary_cross_entropy_with_logits(logits[:, new], one_hot, reduction="sum")
            if teacher is not None:
                with torch.no_grad():
                    before = teacher(batch.inputs)[:, old].sigmoid()
                total = total + F.binary_cross_entropy_with_logits(logits[:, old], before, reduction="sum")
            return total / len(batch.labels)

        return loss

    def sums(self, model: nn.Module, memory: Memory) -> tuple[Tensor, Tensor]:
        """Sum of the exemplars' features and number of exemplars, by class: (classes, width), (classes,)."""
        sums = torch.zeros(self.setting.architecture.classes, model.width)
        counts = torch.zeros(len(sums))
        if len(memory):
            sums.index_add_(0, memory["labels"], unit_features(model, memory, self.setting.device))
            counts.index_add_(0, memory["labels"], torch.ones(len(memory)))
        return sums, counts

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        means = server.tensors["exemplars.means"]
        model = super().expects(server, client, moment)
        return {**model, "exemplars.sums": means, "exemplars.counts": means[:, 0]}

    def check(self, message: Message) -> None:
        sums, counts = message.tensors["exemplars.sums"], message.tensors["exemplars.counts"]
        if (counts < 0).any() or (counts != counts.round()).any() or counts.double().sum() > self.params.budget:
            raise ValueError(f"exemplars.counts are not whole numbers that add up to {self.params.budget} at most")
        if (sums.double().norm(dim=1) > counts * 1.001).any():
            raise ValueError("exemplars.sums are longer than so many features of length 1")

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        fused = super().fuse(job, server, uploads, moment)
        sums, counts = (
            torch.stack([upload.message.tensors[f"exemplars.{what}"] for upload in uploads]).double().sum(dim=0)
            for what in ("sums", "counts")
        )
        came, means = counts > 0, server.tensors["exemplars.means"].clone()
        means[came] = (sums[came] / counts[came, None]).float()
        known = server.tensors["exemplars.known"] | came
        kept = {name: tensor for name, tensor in fused.tensors.items() if name in server.tensors}
        return State({**kept, "exemplars.means": means, "exemplars.known": known}, fused.values)

    def predictor(self, kind: str, server: State, client: State, holder: int) -> nn.Module:
        network = super().predictor(kind, server, client, holder)
        if kind == "head":
            return network
        means, known = (server.tensors[f"exemplars.{what}"].to(self.setting.device) for what in ("means", "known"))
        return NearestPrototype(network, means, known, normalise=True)
