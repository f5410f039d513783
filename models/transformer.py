"""The pre-norm transformer block that the image and the text transformer share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from errors import InputError


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q k' / sqrt(d)) v over d = width / heads numbers a head.

    [ours] Written out and not `scaled_dot_product_attention`: on CUDA that sums its gradients in no fixed order unless
    flags are set which all threads of a process share. At 64 tokens on a CPU it costs a tenth more time.

    Source: Vaswani et al. 2017, section 3.2
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"model.heads must divide model.width (got {heads} heads, width {width})")
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)
        self.outputs = nn.Linear(width, width)

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """(batch, tokens, width) -> the same; `present` (batch, tokens) is False where a token is padding."""
        queries, keys, values = self.inputs(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(keys.shape[-1])
        if present is not None:  # finite, so that a text without words attends to everything and not to nothing
            scores = scores.masked_fill(~present[:, None, None], torch.finfo(scores.dtype).min)
        return self.outputs((scores.softmax(dim=-1) @ values).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with a hidden layer of 4 * width units and GELU.

    Source: Dosovitskiy et al. 2021, equations 2 and 3
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens), present)
        return tokens + self.mlp(self.norm2(tokens))
