"""Block expansion: a pre-trained transformer gets blocks of its own kind that change nothing until they learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from errors import InputError
from randomness import generator

from .blocks import Row, first, outputs, same_output, stack, with_tokens
from .foundation import Backbone
from .initial import STD
from .sharing import shared_copy

Position = Literal["interleaved", "top"]
Start = Literal["zero", "random"]


class AddedBlock(Row):
    """A block that was added: h -> Block(h), with a gate h + a (Block(h) - h), a = 0 at the start.

    `on` False: h passes unchanged, and the network is what it was without it.
    """

    def __init__(self, block: nn.Module, gated: bool) -> None:
        super().__init__(block)
        self.on = True
        self.values: int | None = None  # in the tuple that the block returns, 0 where it is none; None before it ran
        self.gate = nn.Parameter(torch.zeros(1, device=next(block.parameters()).device)) if gated else None

    def forward(self, hidden: Tensor, *others: Any, **named: Any) -> Any:
        if not self.on:
            if self.values is None:
                self._run(hidden, *others, **named)
            return (hidden, *[None] * (self.values - 1)) if self.values else hidden
        found = self._run(hidden, *others, **named)
        if self.gate is None:
            return found
        return with_tokens(found, hidden + self.gate * (first(found) - hidden))

    def _run(self, hidden: Tensor, *others: Any, **named: Any) -> Any:
        found = self.block(hidden, *others, **named)
        self.values = len(found) if isinstance(found, tuple) else 0
        return found


def places(blocks: int, added: int, position: Position) -> tuple[int, ...]:
    """Where the K added blocks stand in the row of L + K, from 0 at the bottom.

    Interleaved: one after every L/K-th block. Top: all after the last.

    Raises:
        InputError: interleaved, and K does not divide L.
    """
    if position == "top":
        return tuple(range(blocks, blocks + added))
    if blocks % added:
        fitting = ", ".join(str(k) for k in range(1, blocks + 1) if blocks % k == 0)
        raise InputError(
            f"added must divide the network's {blocks} blocks where they are interleaved (got {added}); "
            f"one of {fitting}"
        )
    split = blocks // added
    return tuple((k + 1) * split + k for k in range(added))


def expand(
    backbone: Backbone,
    added: int,
    position: Position = "interleaved",
    start: Start = "zero",
    gated: bool | None = None,
    seed: int = 0,
) -> Backbone:
    """A backbone with `added` trainable copies of its own blocks that start as the identity.

    Each copy's attention and MLP output projections, weights and biases, are zero, so that a pre-norm network
    computes exactly what it did. Post-norm blocks (BERT, MiniLM) would not be the identity: theirs is a whole copy
    behind a zero gate, see `AddedBlock`. All other tensors are the backbone's own, shared and frozen.

    Args:
        backbone: with L blocks, each mapping (batch, tokens, width) to the same shape.
        added: K, a divisor of L where they are interleaved.
        position: after every L/K-th block, or `top`, all after the last; each is a copy of the block before it.
        start: `random` draws the copies' matrices instead (an ablation: the network then is no longer what it was).
        gated: whether copies have a gate; None finds out whether the network is the same without one.
        seed: of `random`.
    Raises:
        InputError: the backbone is no transformer, K does not divide L, or copies change what it computes even gated.
    Source: Wu et al., LLaMA Pro, ACL 2024, arXiv 2401.02415, section 3.2; gate: Bachlechner et al., ReZero, UAI 2021
    """
    if gated is None:
        gated = needs_gate(backbone, added, position)
    network, row = shared_copy(backbone), stack(backbone)
    stands = places(len(row.blocks), added, position)
    originals = list(network.get_submodule(row.path))
    blocks: list[nn.Module] = []
    origins: list[int] = []
    for place in range(len(originals) + added):
        below = place - sum(stand < place for stand in stands)  # originals below this place
        origins.append(below - 1 if place in stands else below)
        block = originals[origins[-1]]
        blocks.append(AddedBlock(_copy(block, gated), gated) if place in stands else block)
    row.replace(network, blocks, origins)
    if start == "random":
        _draw(added_blocks(network), seed)
    return network.eval()


def needs_gate(backbone: Backbone, added: int, position: Position) -> bool:
    """Whether added blocks without a gate change what the network computes, as they do in a post-norm one.

    Raises:
        InputError: those with a gate do as well.
    """
    for gated in (False, True):
        if same_output(backbone, expand(backbone, added, position, gated=gated), backbone.example()):
            return gated
    raise InputError(f"foundation: {type(backbone).__name__} cannot get blocks without changing what it computes")


def _copy(block: nn.Module, gated: bool) -> nn.Module:
    copied = shared_copy(block, owns=lambda name: True)
    if not gated:
        with torch.no_grad():
            for projection in outputs(copied):
                for each in projection.parameters():
                    each.zero_()
    return copied


def _draw(blocks: Sequence[AddedBlock], seed: int) -> None:
    """Matrices normal with standard deviation 0.02 and biases 0, as a transformer is initialised; gates open."""
    with torch.no_grad():
        for k, added in enumerate(blocks):
            draw = generator(seed, "expansion", k)
            for name, each in sorted(added.block.named_parameters()):
                if each.dim() > 1:
                    each.copy_(torch.empty(each.shape).normal_(0.0, STD, generator=draw))
                elif name.endswith("bias"):
                    each.zero_()
            if added.gate is not None:
                added.gate.fill_(1.0)


def added_blocks(network: nn.Module) -> list[AddedBlock]:
    """The added blocks of an expanded network, from the bottom."""
    return [each for each in network.modules() if isinstance(each, AddedBlock)]
