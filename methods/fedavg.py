"""Federated averaging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from .aggregation import weighted_mean
from .base import Method, Upload, register
from .objectives import plain
from .state import Message, Moment, State, prefixed
from .training import Batch, Client, Update, fit


@register("fedavg", multitask=True)
class FedAvg(Method):
    """Federated averaging: clients train the server's model, the server averages them.

        theta <- sum_i n_i theta_i / sum_i n_i                      McMahan et al., AISTATS 2017, algorithm 1

    It knows nothing of experiences, so it forgets: the floor for every federated continual method. The cross-entropy
    runs over the classes the client has seen so far [ours: unseen classes have no data to be wrong about], in a
    task-incremental stream over those of the experience.

    Where clients have different tasks, each receives and trains the components that its tasks use, and a component is
    averaged over the clients that hold it; a batch of several tasks has the loss sum_o share_o L_o (`objectives`).
    """

    def start(self) -> State:
        return State(prefixed("model", self.setting.initial_model()))

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        setting, model = self.setting, server.part("model")
        places = sorted({setting.place(client) for client in clients})
        messages = {place: Message(prefixed("model", setting.part(model, place))) for place in places}
        return {client: messages[setting.place(client)] for client in clients}

    def train(self, client: Client) -> Update:
        model = self.begin(client)
        loss, steps = fit(model, client, self.setting.train, self.objective(client))
        message = Message(prefixed("model", self.setting.state(model, client.id)))
        return Update(client.state, message, model, loss, steps)

    def begin(self, client: Client) -> nn.Module:
        """The model that a client trains, as it received it."""
        return self.setting.load(client.received.part("model"), client.id)

    def objective(self, client: Client):
        """The client's loss as a function of model and batch; what is computed once a round is computed here."""

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return plain(model, batch, client.candidates)

        return loss

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        return prefixed("model", self.setting.part(server.part("model"), self.setting.place(client)))

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        return State({**server.tensors, **weighted_mean(uploads)}, server.values)

    def predictor(self, kind: str, server: State, client: State, holder: int) -> nn.Module:
        return self.setting.load(server.part("model"))
