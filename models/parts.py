"""What of a foundation model is trained: a copy that shares the frozen tensors and owns its trainable part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from randomness import generator

from .adapter import Adapter
from .blocks import Row, first, stack
from .expansion import Position, Start, expand
from .foundation import Foundation
from .initial import initialise
from .sharing import shared_copy


def lora(foundation: Foundation, seed: int, rank: int) -> Foundation:
    """Attention's layers have a low-rank part each: W + B A, B = 0 at the start.

    Through PEFT. A is drawn again from a generator of ours, since PEFT draws from torch's global one.

    Source: Hu et al., LoRA, ICLR 2022
    """
    from peft import LoraConfig, inject_adapter_in_model  # seconds

    from .released_weights import Undrawn

    copied = shared_copy(foundation)
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(copied.backbone.adaptable))
    with Undrawn():
        inject_adapter_in_model(config, copied.backbone)
    draw = generator(seed, "psi", "lora")
    with torch.no_grad():
        for name, each in sorted(copied.named_parameters()):
            each.requires_grad_("lora_" in name)
            if "lora_A" in name:
                bound = each.shape[1] ** -0.5
                each.copy_(torch.empty(each.shape).uniform_(-bound, bound, generator=draw))
    return copied


def ffa_lora(foundation: Foundation, seed: int, rank: int) -> Foundation:
    """LoRA whose A stays as it was drawn: B alone is trained, so that the mean of B A over clients is mean(B) A.

    Source: Sun et al., Improving LoRA in privacy-preserving federated learning (FFA-LoRA), ICLR 2024
    """
    copied = lora(foundation, seed, rank)
    for name, each in copied.named_parameters():
        if "lora_A" in name:
            each.requires_grad_(False)
    return copied


class WithAdapter(Row):
    """A block with an adapter on what comes out of it."""

    def __init__(self, block: nn.Module, adapter: Adapter) -> None:
        super().__init__(block)
        self.adapter = adapter

    def forward(self, hidden: Tensor, *others: Any, **named: Any) -> Any:
        found = self.block(hidden, *others, **named)
        return (self.adapter(first(found)), *found[1:]) if isinstance(found, tuple) else self.adapter(found)


def adapters(foundation: Foundation, seed: int, rank: int) -> Foundation:
    """A bottleneck adapter of `rank` units on every block's output, the identity at the start.

    Source: Houlsby et al., ICML 2019; one a block, after the MLP: Pfeiffer et al., EACL 2021
    """
    copied, row = shared_copy(foundation), stack(foundation.backbone)
    draw = generator(seed, "psi", "adapters")
    adapted: list[nn.Module] = []
    for block in copied.backbone.get_submodule(row.path):
        with torch.device("meta"):
            adapter = Adapter(width(block), rank)
        adapted.append(WithAdapter(block, initialise(adapter, draw).to(next(block.parameters()).device)))
    row.replace(copied.backbone, adapted, range(len(adapted)))
    return copied


def width(block: nn.Module) -> int:
    """The length of a block's tokens: that of its normalisation."""
    return next(each.weight.numel() for each in block.modules() if "norm" in type(each).__name__.lower())


def biases(foundation: Foundation, seed: int) -> Foundation:
    """All biases of the backbone. Source: Ben Zaken et al., BitFit, ACL 2022"""
    return shared_copy(foundation, owns=lambda name: name.startswith("backbone.") and name.endswith("bias"))


def everything(foundation: Foundation, seed: int) -> Foundation:
    """The whole backbone; statistics of its normalisation layers stay."""
    return shared_copy(foundation, owns=lambda name: name.startswith("backbone."))


def nothing(foundation: Foundation, seed: int, rank: int = 0) -> Foundation:
    """The foundation model itself: only the classifier on it learns."""
    return foundation


def blocks(
    foundation: Foundation,
    seed: int,
    added: int,
    position: Position = "interleaved",
    start: Start = "zero",
    gated: bool | None = None,
) -> Foundation:
    """Added blocks, see `expansion.expand`."""
    copied = shared_copy(foundation)
    copied.backbone = expand(foundation.backbone, added, position, start, gated, seed)
    return copied


def top_blocks(foundation: Foundation, seed: int, added: int) -> Foundation:
    """The `added` top blocks of the backbone themselves: no expansion (an ablation)."""
    row = stack(foundation.backbone)
    last = [f"backbone.{row.path}.{place}." for place in range(len(row.blocks) - added, len(row.blocks))]
    return shared_copy(foundation, owns=lambda name: name.startswith(tuple(last)))


PARTS: dict[str, Callable[..., Foundation]] = {
    "head": nothing,
    "lora": lora,
    "ffa_lora": ffa_lora,
    "adapters": adapters,
    "biases": biases,
    "everything": everything,
    "blocks": blocks,
    "top_blocks": top_blocks,
}
