"""The multi-modal, multi-task network of TAP at reduced scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from errors import InputError
from multitask import Layout, Task

from .adapter import Zero
from .registry import FAR, Classifier, PositiveInt, register
from .text import WordVectors
from .tokenizer import words
from .transformer import Attention, Block
from .vit import fitting_patch

PATHS = ("shared", "task", "pair", "modality")  # the four paths, by the expert of their first stage


class Fused(NamedTuple):
    """What the fusion makes of samples of one task."""

    tokens: Tensor  # (batch, tokens of all modalities, width), mean over the paths
    present: Tensor  # (batch, tokens) bool, False where a text has ended
    pooled: Tensor  # (batch, width), mean over tokens, paths and modalities
    latents: Mapping[str, Tensor]  # modality -> (batch, width), pooled on the private path of (modality, task)


class Images(nn.Module):
    """Images (batch, channels, height, width) -> (batch, tokens, width): patches, learnt positions, `depth` blocks."""

    def __init__(self, shape: Sequence[int], width: int, depth: int, heads: int) -> None:
        super().__init__()
        channels, high, wide = shape
        try:
            patch = fitting_patch(high, wide)
        except InputError:
            raise InputError(
                f"streams.*.size: {high} x {wide} pixels make no 4 to 16 patches a side; set another"
            ) from None
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.GELU())
        self.patches = nn.Conv2d(width, width, patch, stride=patch)
        self.positions = nn.Embedding((high // patch) * (wide // patch), width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.patches(self.stem(images)).flatten(2).transpose(1, 2)
        return self.blocks(tokens + self.positions.weight), tokens.new_ones(tokens.shape[:2], dtype=torch.bool)


class Texts(nn.Module):
    """Texts (batch, length) as bytes -> (batch, tokens, width): hashed words, learnt positions, `depth` blocks."""

    def __init__(self, vocabulary: int, tokens: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.vocabulary, self.tokens = vocabulary, tokens
        self.words = WordVectors(vocabulary, width)
        self.positions = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.scale = width**0.5  # as in Vaswani et al. 2017, section 3.4

    def forward(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        numbers, present = words(texts, self.vocabulary, self.tokens)
        vectors = self.scale * (self.words(numbers) + self.positions.weight)
        for block in self.blocks:
            vectors = block(vectors, present)
        return vectors, present


class LowRank(nn.Linear):
    """W x + b + B A x, A (rank, inputs), B (outputs, rank), B = 0 at the start. [field: LoRA, Hu et al., ICLR 2022]"""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__(inputs, outputs)
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = Zero(rank, outputs, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:
        return super().forward(vectors) + self.up(self.down(vectors))


def linear(inputs: int, outputs: int, rank: int | None) -> nn.Linear:
    return nn.Linear(inputs, outputs) if rank is None else LowRank(inputs, outputs, rank)


class Expert(nn.Module):
    """x + W2 gelu(W1 norm(x)): one feed-forward expert with 2 * width hidden units."""

    def __init__(self, width: int, rank: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = linear(width, 2 * width, rank)
        self.outer = linear(2 * width, width, rank)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.outer(nn.functional.gelu(self.inner(self.norm(tokens))))


class Mixer(nn.Module):
    """x + attention(norm(x)) over the tokens of all modalities: where they meet."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        return tokens + self.attention(self.norm(tokens), present)


class Picture(nn.Module):
    """Pooled vectors -> images (batch, channels, height, width): a small map, doubled twice."""

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        channels, high, wide = shape
        self.small = (width, high // 4, wide // 4)
        self.start = nn.Linear(width, width * (high // 4) * (wide // 4))
        self.grow = nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1)
        self.end = nn.ConvTranspose2d(width // 2, channels, 4, stride=2, padding=1)

    def forward(self, fused: Fused) -> Tensor:
        maps = nn.functional.gelu(self.start(fused.pooled)).unflatten(1, self.small)
        return self.end(nn.functional.gelu(self.grow(maps)))


class Sentence(nn.Module):
    """Learnt positions ask the fused tokens: logits (batch, words, vocabulary), all words at once."""

    def __init__(self, length: int, vocabulary: int, width: int) -> None:
        super().__init__()
        self.positions = nn.Embedding(length, width)
        self.asked = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 2 * width)
        self.words = nn.Linear(2 * width, vocabulary)

    def forward(self, fused: Fused) -> Tensor:
        asks = self.asked(self.positions.weight) + fused.pooled[:, None]
        scores = asks @ fused.tokens.transpose(1, 2) / fused.tokens.shape[2] ** 0.5
        scores = scores.masked_fill(~fused.present[:, None], torch.finfo(scores.dtype).min)
        heard = self.norm(asks + scores.softmax(dim=-1) @ fused.tokens)
        return self.words(nn.functional.gelu(self.inner(heard)))


class Choice(nn.Module):
    """Pooled vectors -> logits (batch, classes), by one hidden layer."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, classes)

    def forward(self, fused: Fused) -> Tensor:
        return self.outer(nn.functional.gelu(self.inner(fused.pooled)))


@register("multimodal")
class MultiModal(Classifier):
    """Records of a `Layout` -> what each task asks: encoders, four-path fusion by experts, a head for each task.

    For task o, its modalities m:   z_m = projection( encoder_m(x_m) ),   mixed by self-attention over all m
        four paths p:   z_m^p = E_p(z_m),   E_p the expert of all, of task o, of the pair (m, o), or of modality m
        then            h_m^p = E_m( mixed z^p ),   a second expert of the modality
        out             mean over paths and tokens, then over modalities -> head_o

    Names are parts of the table in `components`; a network of some of the tasks has the components that these use.

    Args:
        shape: (bytes,) of a record. layout: `Layout.to_record()`. tasks: those that the network is for; all by
        default. width: d, of all tokens. heads: a divisor of width. depth: blocks of each encoder. vocabulary,
        tokens: of the texts that are read, see `TextTransformer`. rank: of low-rank matrices beside the experts'
        layers and the queries, keys and values of the encoders, which are
            frozen themselves; by default all is trained. See `models.pretrained`.

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
