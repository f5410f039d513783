"""Normalised averaging."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Setting, Upload, register
from .fedavg import FedAvg
from .local_steps import accumulation, require_sgd
from .state import Message, Moment, State, prefixed
from .training import Client, Update


@dataclass(frozen=True)
class Rescaled:
    """An upload as if its client had moved `scale` times as far from the model it received; `buffers` are as sent."""

    upload: Upload
    server: State
    scale: float
    buffers: Set[str]

    @property
    def samples(self) -> int:
        return self.upload.samples

    @property
    def message(self) -> Message:
        before, after = self.server.part("model"), self.upload.message.part("model")
        moved = {
            name: y if name in self.buffers else torch.lerp(before[name], y, self.scale) for name, y in after.items()
        }
        return Message(prefixed("model", moved))


@register("fednova")
class FedNova(FedAvg):
    """Normalised averaging: how many steps a client takes does not change what it counts.

        d_i = (x - y_i) / ||a_i||_1,    tau_eff = sum_i p_i ||a_i||_1,    p_i = n_i / sum_i n_i
        x <- x - tau_eff sum_i p_i d_i

    Wang et al., NeurIPS 2020, section 4; d_i here contains the local learning rate. a_i says how often each of the
    client's gradients counts: for plain SGD ||a_i||_1 is the number of steps tau_i, with local momentum the paper's
    longer sum (`accumulation`). FedAvg weighs clients by n_i and, unnoticed, by tau_i once more.

    Written as sum_i p_i (x + tau_eff / ||a_i||_1 (y_i - x)) this is FedAvg over rescaled uploads, and so
    it is computed: with equal steps it is FedAvg. Running statistics are no sums of gradients and are
    averaged as in FedAvg: rescaled, a variance could become negative [ours].

    The steps travel as a tensor. tau_eff multiplies everybody's update, so one client's lie about its steps could blow
    up the model: what is said is bounded by what the local epochs and the client's samples allow [ours].
    """

    def __init__(self, params: FedAvg.Params, setting: Setting) -> None:
        super().__init__(params, setting)
        require_sgd(setting.train, self.name)
        model = setting.architecture.load(setting.initial_model())
        self.buffers = {name for name, _ in model.named_buffers()}

    def train(self, client: Client) -> Update:
        update = super().train(client)
        message = Message({**update.message.tensors, "steps": torch.tensor(update.steps)})
        return Update(update.state, message, update.model, update.loss, update.steps)

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        return {**super().expects(server, client, moment), "steps": torch.tensor(0)}

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        sums = [accumulation(self.steps(upload), self.setting.train.momentum) for upload in uploads]
        weights = [upload.samples for upload in uploads]
        tau_eff = sum(n * a for n, a in zip(weights, sums, strict=True)) / sum(weights)
        rescaled = [
            Rescaled(upload, server, tau_eff / a, self.buffers) for upload, a in zip(uploads, sums, strict=True)
        ]
        return super().fuse(job, server, rescaled, moment)

    def steps(self, upload: Upload) -> int:
        """tau_i, between one step and all that the local epochs over the client's samples have."""
        train = self.setting.train
        most = train.local_epochs * math.ceil(upload.samples / train.batch_size)
        return min(max(int(upload.message.tensors["steps"]), 1), most)
