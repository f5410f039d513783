"""TARGET: data-free generative replay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn

from errors import InputError
from randomness import generator
from validation import Section

from .base import Setting, Upload, register
from .fedavg import FedAvg
from .state import Message, Moment, State
from .synthesis import Synthesis, synthesise
from .teacher import Taught
from .training import Batch, Client, Update, cross_entropy, distillation, to_float

NEVER = -1e9  # logit of a class that the teacher does not know: probability 0


@register("target")
class Target(Taught):
    """FedAvg whose clients replay images that the server made from the last global model alone (TARGET).

        L = CE( theta(x), y ) + weight * tau^2 KL( theta^{t-1}(s) || theta(s) )         x, y own samples; s synthetic
                                                                Zhang et al., ICCV 2023: the client's two terms
        s = G(z):  min_G  a CE( theta^{t-1}(s), y' ) + b R_BN(s) - c KL( theta^{t-1}(s) || student(s) )

    When an experience ends, the server trains a generator against the global model (methods/synthesis.py; no sample of
    anyone is needed) and keeps its images. They go down once per client and experience with the teacher theta^{t-1}
    (see `Taught`), as uint8 [ours: a quarter of the bytes]. A minibatch of them stands beside each of a client's own.
    With weight 0 nothing is made and the models are FedAvg's to the last bit.

    Where old and new classes compete, both terms run over all of them and the teacher gives probability 0 to classes
    that it has not learned: so the new classes learn from the synthetic images that these are not theirs. [ours] In the
    authors' code CE runs over the new classes and KL over the old ones, which leaves it open which of the two groups an
    image belongs to: `apart`. [code] In a task-incremental stream each experience's classes stand for themselves.

    The server has to know which classes the teacher learned, to draw y': each client says with its model which labels
    it trained on, one byte a class. [ours: in the paper all clients have the same] Whoever can use the model can see
    the generator's images; they look like what the model expects, which for networks without BatchNorm is little like
    the clients' (the term R_BN is then nothing at all).

    The authors' code has weight 25 without tau^2 at tau 2, a weight of 6.25 here, and four synthetic images for one
    real one; the defaults were chosen on the digits. [ours]
    """

    lesson = ("previous", "synthetic")

    class Params(FedAvg.Params):
        weight: float = Field(2.0, ge=0, description="weight of the distillation on synthetic images; 0 is FedAvg")
        temperature: float = Field(1.0, gt=0, description="tau, softens both predictions")
        batch_size: int = Field(64, ge=2, description="synthetic images beside each minibatch of own samples")
        apart: bool = Field(False, description="new classes learn from own images only, old ones from synthetic only")
        synthesis: Synthesis = Field(default_factory=Synthesis, description="how the server makes the images")

    def __init__(self, params: Section, setting: Setting) -> None:
        super().__init__(params, setting)
        modality = setting.architecture.modality
        if modality != "image":
            raise InputError(f"method {self.name} makes images and needs a stream of images (got one of {modality}s)")

    # the server's side

    def start(self) -> State:
        nothing = torch.zeros(self.setting.architecture.classes, dtype=torch.bool)
        return State({**super().start().tensors, "learned": nothing})

    def expects(self, server: State, client: int, moment: Moment) -> Mapping[str, Tensor]:
        return {**super().expects(server, client, moment), "learned": server.tensors["learned"]}

    def fuse(self, job: str, server: State, uploads: Sequence[Upload], moment: Moment) -> State:
        fused = super().fuse(job, server, uploads, moment)
        learned = server.tensors["learned"].clone()
        for upload in uploads:
            learned |= upload.message.tensors["learned"]
        return State({**fused.tensors, "learned": learned}, fused.values)

    def end_experience(self, server: State, experience: int) -> State:
        learned = server.tensors["learned"]
        if not self.params.weight or not learned.any() or experience + 1 == self.setting.experiences:
            return server
        state, setting = super().end_experience(server, experience), self.setting
        names = ("server", "synthesis", experience)
        student = setting.architecture.initial(generator(setting.seed, *names, "student"))
        made = synthesise(
            teacher=setting.load(state.part("previous")),
            student=setting.load(student),
            shape=setting.architecture.shape,
            classes=learned.nonzero().flatten().tolist(),
            parameters=self.params.synthesis,
            augmentation=setting.train.augmentation,
            draw=generator(setting.seed, *names),
        )
        synthetic = {"synthetic.images": made.images, "synthetic.classes": learned}
        return State({**state.tensors, **synthetic}, state.values)

    # the client's side

    def train(self, client: Client) -> Update:
        update = super().train(client)
        labels = client.data.labels.cpu().bincount(minlength=self.setting.architecture.classes)
        return replace(update, message=Message({**update.message.tensors, "learned": labels > 0}))

    def objective(self, client: Client):
        lesson = State(self.taught(client))
        if not lesson.tensors:
            return super().objective(client)
        teacher = self.setting.load(lesson.part("previous")).eval()
        learned = lesson.tensors["synthetic.classes"].to(self.setting.device)
        own, heads = self.competing(client, tuple(learned.nonzero().flatten().tolist()))
        synthetic = self.synthetic(client, lesson.tensors["synthetic.images"].to(self.setting.device))

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            images = next(synthetic)
            with torch.no_grad():
                wanted = teacher(images).masked_fill(~learned, NEVER)
            logits = model(images)
            drift = sum(distillation(logits, wanted, head, self.params.temperature) for head in heads)
            return cross_entropy(model(batch.inputs), batch.labels, own) + self.params.weight * drift

        return loss

    def competing(self, client: Client, learned: tuple[int, ...]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        """The classes over which own samples are told apart, and the groups of classes for synthetic images."""
        if client.task_aware:
            heads = [tuple(label for label in head if label in learned) for head in client.old_heads]
            return client.candidates, [head for head in heads if head]
        if self.params.apart:
            return client.classes, [learned]
        return client.candidates, [tuple(sorted({*learned, *client.candidates}))]

    def synthetic(self, client: Client, images: Tensor) -> Iterator[Tensor]:
        """Endless minibatches of synthetic images, as a network takes them, augmented like the client's own."""
        draw = client.generator("synthetic")
        while True:
            rows = torch.randperm(len(images), generator=draw)[: self.params.batch_size]
            yield self.setting.train.augmentation.apply(to_float(images[rows.to(images.device)]), draw)
