"""The text classifier: a small transformer with its own tokenizer."""

from __future__ import annotations

from torch import Tensor, nn

from .registry import Classifier, PositiveInt, register
from .tokenizer import words
from .transformer import Block


class WordVectors(nn.Embedding):
    """A vector a word number; the same as nn.Embedding, with a gradient that is summed in a fixed order everywhere.

    nn.Embedding's is not on CUDA, indexing's is (its backward sorts); on the CPU it is the other way round, where sums
    are split between threads.
    """

    def forward(self, numbers: Tensor) -> Tensor:
        return self.weight[numbers] if numbers.is_cuda else super().forward(numbers)


@register("text_transformer")
class TextTransformer(Classifier):
    """Texts (batch, length) as UTF-8 bytes, uint8 with zeros after the end -> features, the mean over their words.

    The first `tokens` words are hashed into `vocabulary` numbers (models/tokenizer.py: why no learnt vocabulary), get
    a vector each and a learnt position, and pass `depth` pre-norm blocks; padding is seen by none. A text without
    words has the features 0. heads: a divisor of width. No dropout.

    Source: Vaswani et al. 2017, arXiv 1706.03762; feature hashing, Weinberger et al. 2009, arXiv 0902.2206
    """

    modality = "text"

    def __init__(
        self,
        shape: tuple[int],
        classes: int,
        vocabulary: PositiveInt = 8192,
        tokens: PositiveInt = 64,
        width: PositiveInt = 64,
        depth: PositiveInt = 2,
        heads: PositiveInt = 4,
    ) -> None:
        super().__init__()
        self.vocabulary, self.tokens = vocabulary, tokens
        self.words = WordVectors(vocabulary, width)
        self.positions = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.width = width
        self.head = nn.Linear(width, classes)

    def pooled(self, texts: Tensor) -> Tensor:
        numbers, present = words(texts, self.vocabulary, self.tokens)
        vectors = self.words(numbers) + self.positions.weight
        for block in self.blocks:
            vectors = block(vectors, present)
        kept = self.norm(vectors) * present[:, :, None]
        return kept.sum(dim=1) / present.sum(dim=1, keepdim=True).clamp(min=1)
