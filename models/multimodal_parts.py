"""The layers of the network of several tasks: encoders, experts, what mixes tokens, and heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from errors import InputError

from .adapter import Zero
from .text import WordVectors
from .tokenizer import words
from .transformer import Attention, Block
from .vit import fitting_patch


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
