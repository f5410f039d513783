"""Federated orthogonal training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from .aggregation import weighted_mean
from .base import Setting, Upload, register
from .fedavg import FedAvg
from .layer_inputs import columns, joined, layers, parted, width
from .state import Message, Moment, State, prefixed
from .training import Client, Update


@register("fot")
class FOT(FedAvg):
    """FedAvg whose aggregated updates leave what the layers computed for earlier experiences as it was.

        FedProject   dW <- dW - dW U U'                       dW = mean of the clients' W - W, for each layer
        GPSE         S = sum_i X_i Omega_i                    X_i: client i's inputs of the layer, Omega_i ~ N(0, 1)
                     U <- [U, U_k],   U_k: the first k left singular vectors of (I - U U') S, with the smallest k for
                     |U U' S|^2 + |U_k U_k' S|^2 >= epsilon |S|^2

    Bakman et al., ICLR 2024: FedProject and global principal subspace extraction. What a layer computes is W x; since
    dW x = 0 for every x in the span of U, it stays what it was for the inputs that U stands for. In the first
    experience, and with threshold 0, this is FedAvg to the last bit.

    When: with the upload of an experience's last round, from the client's own data and its model right after training
    [code]. The server asks for the sketches with that round's broadcast, so that a client that lags behind answers too
    [ours]. Only their sum is needed, so that they could be added securely as in the paper; here the server sees each,
    and it knows Omega: where a client has fewer inputs of a layer than a sketch has columns, it could solve for them.

    How it differs: the paper's clients receive U and sketch (I - U U') X_i; since that is linear, the server applies
    it to the sum here, and what |X|^2 was it learns from the sketch too [ours: no U goes down, a client cannot misstate
    it]. The released networks have no biases or normalisation: here a bias is the weight of a constant input 1, and
    all that is no Linear or Conv2d layer keeps the values of the first experience's end, as batch normalisation does
    in Saha et al., ICLR 2021 [ours]. The paper's heads are one per task and free. So are a task-incremental stream's,
    since an experience trains its own classes' rows alone; elsewhere the one head is a layer like the others, which
    keeps new classes' logits for old inputs where they were, too [code: the one head of the permuted digits; ours:
    class-incremental streams, where a free head would forget as FedAvg's does].
    """

    class Params(FedAvg.Params):
        threshold: float = Field(
            0.87, ge=0, le=1, description="epsilon, the share of the layers' inputs' energy that is kept; 0 is FedAvg"
        )
        increase: float = Field(0.001, ge=0, le=1, description="by which epsilon grows with each experience")
        sketch: float = Field(1.0, gt=0, le=10, description="columns of a sketch for each input of the layer")

    def __init__(self, params: Params, setting: Setting) -> None:
        super().__init__(params, setting)
        known = layers(setting.architecture.load(setting.initial_model()))
        self.free = ("head",) if setting.task_aware else ()
        self.widths = {name: width(layer) for name, layer in known.items() if name not in self.free}

    def asks(self, moment: Moment) -> bool:
        """Whether clients send sketches: in an experience's last round, if another experience follows."""
        ends, follows = moment.round == self.setting.train.rounds - 1, moment.experience < self.setting.experiences - 1
        return self.params.threshold > 0 and ends and follows

    def broadcast(self, server: State, clients: Sequence[int], moment: Moment) -> Mapping[int, Message | None]:
        asked = {"sketch": True} if self.asks(moment) else {}
        return dict.fromkeys(clients, Message(prefixed("model", server.part("model")), asked))

    def train(self, client: Client) -> Update:
        update = super().train(client)
        if "sketch" not in client.received.values:
            return update
        sketches = prefixed("sketch", self.sketches(update.model, client))
        return replace(update, message=Message({**update.message.tensors, **sketches}))

    @torch.no_grad()
    def sketches(self, model: nn.Module, client: Client) -> dict[str, Tensor]:
        """X Omega of every layer, (inputs, columns), summed over batches: Omega is never held as a whole."""
        model.eval()
        draw, shapes = client.generator("sketch"), self.shapes()
        sums = {name: torch.zeros(shape) for name, shape in shapes.items()}
        for batch in client.data.batches(self.setting.train.batch_size):
            for name, inputs in columns(model, batch.inputs, shapes).items():
                omega = torch.randn(inputs.shape[1], shapes[name][1], generator=draw)
                sums[name] += (inputs @ omega.to(inputs.device)).cpu()
        return sums

    def shapes(self) -> dict[str, tuple[int, int]]:
        return {name: (inputs, math.ceil(self.params.sketch * inputs)) for name, inputs in self.widths.items()}

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        sketches = {name: torch.empty(shape) for name, shape in self.shapes().items()} if self.asks(moment) else {}
        return {**super().expects(server, client, moment), **prefixed("sketch", sketches)}

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        fused = State(weighted_mean(uploads)).part("model")
        model = project(server.part("model"), fused, server.part("basis"), self.free)
        grown = self.grown(server, uploads, moment) if self.asks(moment) else server.part("basis")
        return State({**prefixed("model", model), **prefixed("basis", grown)}, server.values)

    def grown(self, server: State, uploads: Sequence[Upload], moment: Moment) -> dict[str, Tensor]:
        """Every layer's basis with the directions of this experience's inputs."""
        epsilon = min(self.params.threshold + self.params.increase * moment.experience, 1.0)
        basis, sums = server.part("basis"), {}
        for upload in uploads:
            for name, sketch in upload.message.part("sketch").items():
                sums[name] = sums.get(name, 0) + sketch.double()
        return {
            name: extend(basis.get(name), total.to(self.setting.device), epsilon).cpu() for name, total in sums.items()
        }


def extend(basis: Tensor | None, sketch: Tensor, epsilon: float) -> Tensor:
    """An orthonormal basis (inputs, k) that keeps a share of at least `epsilon` of the sketch's energy.

    Args:
        basis: (inputs, k0) orthonormal, what is kept already; None: nothing.
        sketch: (inputs, columns), float64.
    """
    if basis is None:
        basis = sketch.new_empty(len(sketch), 0)
    basis = basis.to(sketch)
    rest = sketch - basis @ (basis.T @ sketch)
    wanted = rest.square().sum() - (1 - epsilon) * sketch.square().sum()
    if wanted > 0:
        left, values, _ = torch.linalg.svd(rest, full_matrices=False)
        needed = int((values.square().cumsum(0) < wanted).sum()) + 1
        basis, _ = torch.linalg.qr(torch.cat([basis, left[:, : min(needed, len(sketch) - basis.shape[1])]], dim=1))
    return basis.float()


def project(
    old: dict[str, Tensor], new: dict[str, Tensor], basis: dict[str, Tensor], free: Sequence[str]
) -> dict[str, Tensor]:
    """`new` without the part of its update that the inputs in `basis` would notice.

    Layers that have a basis are updated by dW - dW U U'; layers in `free` are as in `new`; all else is as in `old`.
    Without any basis this is `new` itself.
    """
    if not basis:
        return new
    kept = {name: new[name] for name in new if name.rpartition(".")[0] in free}
    for layer, directions in basis.items():
        before, directions = joined(layer, old).double(), directions.double()
        update = joined(layer, new).double() - before
        kept |= parted(layer, before + update - update @ directions @ directions.T, new)
    return {**old, **kept}
