"""What of a foundation model is trained: a copy that shares the frozen tensors and owns its trainable part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from errors import InputError
from randomness import generator

from .adapter import Adapter
from .blocks import Row, first, stack, width, with_tokens
from .expansion import Position, Start, expand
from .foundation import Foundation
from .initial import initialise
from .sharing import shared_copy


def lora(foundation: Foundation, seed: int, rank: int) -> Foundation:
    """The backbone's adaptable layers have a low-rank part each: W + B A, B = 0 at the start.

    Through PEFT. A is drawn again from a generator of ours, since PEFT draws from torch's global one.

    Raises:
        InputError: the backbone has no such layers.
    Source: Hu et al., LoRA, ICLR 2022
    """
    from peft import LoraConfig, inject_adapter_in_model  # seconds

    from .released_weights import Undrawn

    copied = shared_copy(foundation)
    names = list(copied.backbone.adaptable)
    if not names:
        raise InputError("foundation: the network has no layers for LoRA to adapt; choose another foundation or method")
    transposed = not isinstance(copied.backbone.get_submodule(names[0]), nn.Linear)  # GPT-2's Conv1D
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names, fan_in_fan_out=transposed)
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
        return with_tokens(found, self.adapter(first(found)))


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


def biases(foundation: Foundation, seed: int) -> Foundation:
    """All biases of the backbone.

    Raises:
        InputError: it has none, as LLaMA has none.
    Source: Ben Zaken et al., BitFit, ACL 2022
    """
    if not any(name.endswith("bias") for name, _ in foundation.backbone.named_parameters()):
        raise InputError("foundation: the network has no biases to train; choose another foundation or method")
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
    """The `added` top blocks of the backbone themselves: no expansion (an ablation).

    Raises:
        InputError: the backbone is no transformer, or has fewer blocks.
    """
    row = stack(foundation.backbone)
    if added > len(row.blocks):
        raise InputError(f"added must be at most the network's {len(row.blocks)} blocks (got {added})")
    last = [f"backbone.{name}." for name in row.names[-added:]]
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
