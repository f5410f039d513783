"""Dark experience replay, federated."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .base import register
from .fedavg import FedAvg
from .memory import Memory, competing, replayed_cross_entropy, reservoir
from .state import State
from .training import Batch, Client, Update, cross_entropy


@register("fedder")
class FedDER(FedAvg):
    """FedAvg whose clients rehearse a few old samples and their own old answers to them (DER++).

        L = CE(theta(x), y) + alpha * ||theta(x') - z'||^2 + beta * CE(theta(x''), y'')
                                                                Buzzega et al., NeurIPS 2020, section 3

    (x', z') and (x'', y'') are two independent draws of a minibatch each from the client's memory, z' the logits
    that were recorded when x' came in: all of them, as in the paper, so that the logits of classes that were still
    to come hold the new classes back on old samples. The norm is the mean over logits as in the authors' code [code].
    The memory is a reservoir: a uniform sample of at most `budget` of all samples the client ever had. It never
    leaves the client. Empty (`budget` 0), this is FedAvg to the last bit.

    The paper's stream passes once; here an experience's samples are met in several rounds and epochs. They pass the
    reservoir once, after the client's first training in the experience, and the logits of those that are kept are
    recorded by the model as trained then; `refresh` records them anew after each of the client's later trainings in
    the same experience, so that what is kept in the end is what the client knew best. [ours] The three parts of a
    minibatch go through the network together, which matters to batch normalisation only. [ours]

    The paper's smallest memory is 200 samples in all and alpha, beta are chosen for each data set from 0.1 to 1; the
    defaults are the middle of that range and 100 samples a client. [ours]
    """

    class Params(FedAvg.Params):
        budget: int = Field(100, ge=0, description="samples in each client's memory; 0 is FedAvg")
        alpha: float = Field(0.5, ge=0, description="weight of the recorded logits")
        beta: float = Field(0.5, ge=0, description="weight of the labels in memory")
        refresh: bool = Field(True, description="record logits anew after each training in the same experience")

    def train(self, client: Client) -> Update:
        update = super().train(client)
        kept = self.remember(client, update.model) if self.params.budget else client.state
        return Update(kept, update.message, update.model, update.loss, update.steps)

    def objective(self, client: Client):
        memory = Memory.of(client.state).to(client.data.labels.device)
        if not len(memory):
            return super().objective(client)
        size, augmentation = self.setting.train.batch_size, self.setting.train.augmentation
        draw, mask = client.generator("memory"), competing(client, self.setting.architecture.classes)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            draws = memory.draw(size, draw), memory.draw(size, draw)
            inputs = [each.batch().inputs for each in draws]
            if augmentation.active:
                inputs = [augmentation.apply(each, draw) for each in inputs]
            logits, one, two = model(torch.cat([batch.inputs, *inputs])).split([len(batch.labels), *map(len, draws)])
            return (
                cross_entropy(logits, batch.labels, client.candidates)
                + self.params.alpha * F.mse_loss(one, draws[0]["logits"])
                + self.params.beta * replayed_cross_entropy(two, draws[1], mask)
            )

        return loss

    def remember(self, client: Client, model: nn.Module) -> State:
        """The client's state after its training: an experience's samples pass the reservoir at its first."""
        memory, seen, now = Memory.of(client.state), client.state.values.get("seen", 0), client.moment.experience
        first = client.state.values.get("experience") != now
        if first:
            unrecorded = torch.zeros(len(client.data), self.setting.architecture.classes)
            new = Memory.met(client, logits=unrecorded)
            memory = reservoir(memory, seen, new, self.params.budget, client.generator("reservoir"))
            seen += len(new)
        if first or self.params.refresh:
            memory = memory.having(logits=self.answers(model, memory, memory["experiences"] == now))
        return State(memory.tensors(), {"seen": seen, "experience": now})

    @torch.no_grad()
    def answers(self, model: nn.Module, memory: Memory, asked: Tensor) -> Tensor:
        """The logits in memory, those of the rows `asked` recorded anew from the model."""
        logits = memory["logits"].clone()
        if asked.any():
            data = memory.take(asked).data(self.setting.device)
            logits[asked] = torch.cat([model.eval()(batch.inputs).cpu() for batch in data.batches(512)])
        return logits
