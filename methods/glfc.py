"""GLFC: class-aware gradient compensation and class-semantic relation distillation."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .base import register
from .exemplars import herded, keeping, rehearsing
from .fedavg import FedAvg
from .teacher import Taught
from .training import Batch, Client, Update


@register("glfc")
class GLFC(Taught):
    """FedAvg with exemplars whose losses balance old and new classes and keep their relations (GLFC).

        L = compensation * L_GC + relation * L_RD
        L_GC = mean_i  |G_i| / mean_{j of i's kind} |G_j|  *  BCE( p(x_i), y_i )         G_i = p(x_i)[label_i] - 1
        L_RD = mean_i  BCE( p(x_i), [ p_old(x_i) on the old classes, y_i on the new ones ] )

    p = sigmoid(logits), y one-hot. The two kinds of samples are those of new and of old classes, so that each sample
    counts by its gradient at its label's output among its own kind only, however many there are of the other.
    Dong et al., CVPR 2022, section 4 [paper: the two losses, both with weight 0.5]. Sigmoids and binary cross-entropy,
    and no weights while there are no old classes, as in the authors' code [code]; it averages over classes and takes
    steps of 2.0, here BCE is the sum over the classes. [ours: steps as for the other methods]

    The samples are the client's own and its exemplars of earlier experiences: `budget` in all, equal shares for its
    classes, those nearest to the class's mean feature (methods/exemplars.py). They never leave the client.

    Not in here: the proxy server. In the paper clients send it gradients of prototype images, from which it
    reconstructs these images, to choose the best old model by them. No sample may cross in this project, and what
    reconstructs one is one. p_old is the global model when the last experience ended. [ours] Where an experience ends
    is known and not guessed from the entropy of predictions. [ours]

    Old classes are those of earlier experiences that are not in this one; a class that comes again (domain-incremental)
    is new. In a task-incremental stream L_GC runs over the classes of the sample's own experience. [ours]
    """

    class Params(FedAvg.Params):
        budget: int = Field(100, ge=0, description="exemplars of each client, shared by its classes; 0 is none")
        compensation: float = Field(0.5, ge=0, description="weight of the gradient compensation loss")
        relation: float = Field(0.5, ge=0, description="weight of the relation distillation loss")

    def train(self, client: Client) -> Update:
        update = super().train(rehearsing(client))
        return replace(update, state=keeping(update.state, herded(client, update.model, self.params.budget)))

    def objective(self, client: Client):
        classes, device = self.setting.architecture.classes, client.data.labels.device
        rivals = competitors(client, classes).to(device)
        old = torch.zeros(classes, dtype=torch.bool, device=device)
        old[sorted({*client.known} - {*client.classes})] = True
        seen = torch.zeros_like(old)
        seen[list(client.seen)] = True
        teacher = self.setting.load(self.teacher(client)).eval() if old.any() else None

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            logits, one_hot = model(batch.inputs), F.one_hot(batch.labels, classes).float()
            plain = binary_cross_entropy(logits, one_hot, rivals[batch.labels])
            if teacher is None:
                return plain.mean()
            weights = compensation(logits.gather(1, batch.labels[:, None])[:, 0], old[batch.labels])
            with torch.no_grad():
                soft = torch.where(old, teacher(batch.inputs).sigmoid(), one_hot)
            relations = binary_cross_entropy(logits, soft, seen)
            return self.params.compensation * (weights * plain).mean() + self.params.relation * relations.mean()

        return loss


def binary_cross_entropy(logits: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
    """(batch,): binary cross-entropies of logits and targets (batch, classes), summed over the mask `classes`."""
    return (F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * classes).sum(dim=1)


def compensation(scores: Tensor, old: Tensor) -> Tensor:
    """|G_i| over its mean among the batch's samples of i's kind, so that the weights of each kind have mean 1.

    Args:
        scores: (batch,), each sample's logit for its label; no gradient flows through the weights.
        old: (batch,) bool, which samples are of old classes.
    """
    size, weights = (-scores.detach()).sigmoid(), torch.zeros_like(scores)
    for kind in (old, ~old):
        mean = (size * kind).sum() / kind.sum().clamp_min(1)
        weights = torch.where(kind, size / mean.clamp_min(torch.finfo(mean.dtype).tiny), weights)
    return weights


def competitors(client: Client, classes: int) -> Tensor:
    """(classes, classes) bool: row k holds the classes among which a sample of class k is predicted."""
    mask = torch.zeros(classes, classes, dtype=torch.bool)
    for head in (*client.old_heads, client.classes) if client.task_aware else (client.seen,):
        mask[torch.tensor(head)[:, None], torch.tensor(head)] = True
    return mask
