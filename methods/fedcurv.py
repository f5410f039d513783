"""Federated curvature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from .base import Upload, register
from .fisher import Held, pull, trainable
from .state import Message, Moment, State, prefixed
from .training import Client, Update

NOTHING = 1e-12  # information below this is what the rounding of sums leaves
Curvature = dict[str, Tensor]  # `information.NAME`: I_j, and `weighted.NAME`: I_j theta_j, of each parameter


@register("fedcurv")
class FedCurv(Held):
    """FedAvg whose clients are held where the parameters matter to the other clients.

        L_i = CE(theta) + lambda * sum_{j != i} (theta - theta_j)^T I_j (theta - theta_j)
                                            Shoham et al., NeurIPS workshop on federated learning 2019

    theta_j is what client j trained in its last round, I_j the diagonal Fisher information of its data there. The sum
    needs no more than sum_j I_j and sum_j I_j theta_j: both go up and down beside the model in every round, three
    times FedAvg's bytes, and a client takes its own share off.

    In a stream, what client j holds fast is the sum over its experiences s so far of I_j^s and I_j^s theta_j^s, each
    from its last round in s, the earlier ones `decay`ed at every new one; a client is also held by its own earlier
    experiences. With decay 0, or one experience, this is the paper. [ours] A client uploads by how much its two sums
    changed since its last upload, so that the server's are over all clients that ever took part, whoever is sampled,
    and do not grow with their number. [ours] A pull is never stronger than a step to the centre, see `fisher.pull`.
    [ours] The cross-entropy runs over the current classes, see `fisher.Held` [ours]; with `compete: seen` and lambda 0
    this is FedAvg to the last bit.
    """

    class Params(Held.Params):
        decay: float = Field(1.0, ge=0, le=1, description="what an experience leaves of a client's sums before it")

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        return dict.fromkeys(clients, Message(server.tensors))  # the model, sum_j I_j and sum_j I_j theta_j

    def train(self, client: Client) -> Update:
        update, past, sent = super().train(client), self.past(client), client.state.part("sent")
        now = self.curvature(client, update.model)
        sums = {name: past.get(name, 0) + each for name, each in now.items()}
        change = {name: each - sent.get(name, 0) for name, each in sums.items()}
        kept = State({**prefixed("past", past), **prefixed("sent", sums)}, {"experience": client.moment.experience})
        message = Message({**update.message.tensors, **change})
        return Update(kept, message, update.model, update.loss, update.steps)

    def past(self, client: Client) -> Curvature:
        """The client's own sums over its earlier experiences."""
        if client.state.values.get("experience") == client.moment.experience:
            return client.state.part("past")
        return {name: self.params.decay * each for name, each in client.state.part("sent").items()}

    def curvature(self, client: Client, model: nn.Module) -> Curvature:
        """I and I theta of the client's current data at `model`."""
        information, theta = self.information(client, model), trainable(model)
        weighted = {name: each * theta[name].detach().cpu() for name, each in information.items()}
        return {**prefixed("information", information), **prefixed("weighted", weighted)}

    def hold(self, client: Client):
        if not client.received.part("information"):
            return None
        sent, past = client.state.part("sent"), self.past(client)
        others = State({n: each - sent.get(n, 0) + past.get(n, 0) for n, each in client.received.tensors.items()})
        information, weighted = others.part("information"), others.part("weighted")
        # sum_j I_j (theta - theta_j)^2 = (sum_j I_j) (theta - centre)^2 + what does not depend on theta
        centre = {name: torch.where(i > NOTHING, weighted[name] / i, 0) for name, i in information.items()}
        stiffness = {name: 2 * self.params.strength * i * (i > NOTHING) for name, i in information.items()}
        return pull(stiffness, centre, self.setting.train.learning_rate, self.setting.device)

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        like = self.like_parameters(server)
        model = super().expects(server, client, moment)
        return {**model, **prefixed("information", like), **prefixed("weighted", like)}

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        fused = super().fuse(job, server, uploads, moment)
        sums = {name: server.tensors.get(name, 0) for name in fused.tensors if not name.startswith("model.")}
        for upload in uploads:
            tensors = upload.message.tensors
            sums = {name: each + tensors[name] for name, each in sums.items()}
        return State({**fused.tensors, **sums}, fused.values)
