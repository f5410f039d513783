"""The multi-modal, multi-task network of TAP at reduced scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from errors import InputError
from multitask import Layout, Task

from .multimodal_parts import Choice, Expert, Fused, Images, LowRank, Mixer, Picture, Sentence, Texts
from .registry import FAR, Classifier, PositiveInt, register
from .transformer import Attention

PATHS = ("shared", "task", "pair", "modality")  # the four paths, by the expert of their first stage


@register("multimodal")
class MultiModal(Classifier):
    """Records of a `Layout` -> what each task asks: encoders, four-path fusion by experts, a head for each task.

    For task o, its modalities m:   z_m = projection( encoder_m(x_m) ),   mixed by self-attention over all m
        four paths p:   z_m^p = E_p(z_m),   E_p the expert of all, of task o, of the pair (m, o), or of modality m
        then            h_m^p = E_m( mixed z^p ),   a second expert of the modality
        out             mean over paths and tokens, then over modalities -> head_o

    Names are parts of the table in `components`; a network of some of the tasks has the components that these use.

    Args:
        shape: (bytes,) of a record.
        layout: `Layout.to_record()`.
        tasks: names of those that the network is for; all by default.
        width: d, of all tokens; heads: a divisor of it.
        depth: blocks of each encoder.
        vocabulary, tokens: of the texts that are read, see `TextTransformer`.
        rank: of low-rank matrices beside the experts' layers and the queries, keys and values of the encoders, which
            are frozen themselves; by default all is trained. See `models.pretrained`.

    [paper] four paths of shared and private experts, modality-task experts, then modality experts, mean pool, heads:
    Lee et al., TAP, 2025. [ours] the reduced scale: small encoders, d 64 instead of 768, one layer a stage, attention
    shared by the paths; sentences are said all words at once.
    """

    modality = "record"

    def __init__(
        self,
        shape: tuple[int],
        classes: int,
        layout: dict[str, Any] | None = None,
        tasks: list[str] | None = None,
        width: PositiveInt = 64,
        depth: PositiveInt = 1,
        heads: PositiveInt = 4,
        vocabulary: PositiveInt = 1024,
        tokens: PositiveInt = 24,
        rank: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        if layout is None:
            raise InputError("model.name: multimodal is for streams of several tasks (source: tasks)")
        if width < 2:
            raise InputError(f"model.width must be at least 2 (got {width})")
        self.layout = about = Layout.from_record(layout)
        self.known = {task.name: task for task in about.tasks if tasks is None or task.name in tasks}
        chosen = self.known.values()
        seen = {modality for task in chosen for modality in task.modalities}
        kinds = [modality for modality in ("image", "text") if modality in seen]
        encoders = {
            "image": lambda: Images(about.shape, width, depth, heads),
            "text": lambda: Texts(vocabulary, tokens, width, depth, heads),
        }
        self.encoders = nn.ModuleDict({kind: encoders[kind]() for kind in kinds})
        self.projection = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.transformer = nn.ModuleDict({stage: Mixer(width, heads) for stage in ("first", "second")})
        pairs = {kind: [task.name for task in chosen if kind in task.modalities] for kind in kinds}
        experts: dict[str, nn.Module] = {"shared": Expert(width, rank)}
        experts["task"] = nn.ModuleDict({task.name: Expert(width, rank) for task in chosen})
        for stage in ("modality", "second"):
            experts[stage] = nn.ModuleDict({kind: Expert(width, rank) for kind in kinds})
        experts["pair"] = nn.ModuleDict(
            {kind: nn.ModuleDict({name: Expert(width, rank) for name in names}) for kind, names in pairs.items()}
        )
        self.experts = nn.ModuleDict(experts)
        self.head = nn.ModuleDict({task.name: self._head(task, width) for task in chosen})
        self.width = width
        if rank is not None:
            self._freeze(rank)

    def _freeze(self, rank: int) -> None:
        """Encoders and experts stay as they are, but for low-rank matrices beside their layers."""
        for block in (each for each in self.encoders.modules() if isinstance(each, Attention)):
            block.inputs = LowRank(block.inputs.in_features, block.inputs.out_features, rank)
        for part in (self.encoders, self.experts):
            part.requires_grad_(False)
            for each in (each for each in part.modules() if isinstance(each, LowRank)):
                each.down.requires_grad_(True)
                each.up.requires_grad_(True)

    def _head(self, task: Task, width: int) -> nn.Module:
        high, wide = self.layout.shape[1:]
        if task.target == "image" and (high % 4 or wide % 4):
            raise InputError(
                f"streams.*.size: task {task.name} draws images with sides that 4 divides (got {high} x {wide} pixels)"
            )
        if task.target == "class":
            return Choice(task.classes, width)
        if task.target == "image":
            return Picture(self.layout.shape, width)
        return Sentence(self.layout.words, len(self.layout.vocabulary), width)

    def shown(self, records: Tensor, modality: str) -> Tensor:
        """The images, float32 in [-1, 1], or the texts, uint8, of records."""
        part = records[:, self.layout.part(modality)]
        if modality == "text":
            return part.contiguous()
        return part.reshape(-1, *self.layout.shape).float().div_(127.5).sub_(1)

    def fuse(self, task: Task, records: Tensor) -> Fused:
        """The four paths, for records that are all of `task`."""
        found = [self.encoders[modality](self.shown(records, modality)) for modality in task.modalities]
        sizes = [tokens.shape[1] for tokens, _ in found]
        present = torch.cat([here for _, here in found], dim=1)
        mixed = self.transformer["first"](self.projection(torch.cat([tokens for tokens, _ in found], dim=1)), present)
        stage = []
        for modality, tokens in zip(task.modalities, mixed.split(sizes, dim=1), strict=True):
            experts = (
                self.experts["shared"],
                self.experts["task"][task.name],
                self.experts["pair"][modality][task.name],
                self.experts["modality"][modality],
            )
            stage.append(torch.stack([expert(tokens) for expert in experts]))
        paths = torch.cat(stage, dim=2).flatten(0, 1)  # (paths * batch, tokens, width): the second stage is one for all
        paths = self.transformer["second"](paths, present.repeat(len(PATHS), 1))
        ends = [
            self.experts["second"][modality](tokens).unflatten(0, (len(PATHS), -1))
            for modality, tokens in zip(task.modalities, paths.split(sizes, dim=1), strict=True)
        ]
        pooled = {}
        for modality, tokens, here in zip(task.modalities, ends, present.split(sizes, dim=1), strict=True):
            kept = tokens * here[None, :, :, None]
            pooled[modality] = kept.sum(dim=2) / here.sum(dim=1).clamp(min=1)[None, :, None]  # (paths, batch, width)
        latents = {modality: each[PATHS.index("pair")] for modality, each in pooled.items()}
        mean = torch.stack([each.mean(dim=0) for each in pooled.values()]).mean(dim=0)
        return Fused(torch.cat(ends, dim=2).mean(dim=0), present, mean, latents)

    def groups(self, records: Tensor) -> list[tuple[Task, Tensor]]:
        """The tasks of a batch, each with the rows (rows,) that are its own.

        Raises:
            ValueError: a record of a task that the network is not for.
        """
        numbers = records[:, 0].long()
        found = [
            (self.layout.tasks[number], (numbers == number).nonzero()[:, 0]) for number in numbers.unique().tolist()
        ]
        for task, _ in found:
            if task.name not in self.known:
                raise ValueError(f"a sample of task {task.name} for a network of {', '.join(self.known)}")
        return found

    def features(self, records: Tensor) -> Tensor:
        """Records of any tasks -> what the heads start from, (batch, width)."""
        found = torch.zeros(len(records), self.width, device=records.device)
        for task, rows in self.groups(records):
            found[rows] = self.fuse(task, records[rows]).pooled
        return found

    def say(self, task: Task, records: Tensor) -> Tensor:
        """What the network says to records that are all of `task`: logits, images, or logits of words."""
        return self.head[task.name](self.fuse(task, records))

    def forward(self, records: Tensor) -> Tensor:
        """Logits over the label space of all tasks: a class task's own; of another, 0 for its one label."""
        logits = torch.full((len(records), self.layout.classes), FAR, device=records.device)
        for task, rows in self.groups(records):
            own = slice(task.first, task.first + task.classes)
            logits[rows, own] = self.say(task, records[rows]) if task.target == "class" else 0.0
        return logits
