"""Released text networks in Hugging Face layout as backbones: encoders (BERT, MiniLM) and decoders (GPT-2, LLaMA)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errors import InputError

from .foundation import Backbone, example_texts
from .released_hf import adaptable, config_of
from .released_weights import one_line

TOKENS = 128  # at most: cost grows with the square, and texts of streams are a sentence or a paragraph


class TextBackbone(Backbone):
    """A released text network and its tokenizer.

    Texts (batch, length) as UTF-8 bytes, uint8 with zeros after the end -> the mean of the last layer over the tokens
    that are not padding (batch, width); not scaled to length 1. A character that the end of the bytes cuts in two is
    left out. A text without tokens has the features 0.

    Args:
        network: gives the last layer.
        structure: plain values: tokens (kept of a text), padding (a token's number), config.
        folder: holds tokenizer.json.
    Source: Reimers & Gurevych 2019, arXiv 1908.10084, section 3 (mean over tokens)
    """

    modality = "text"

    def __init__(self, network: nn.Module, structure: Mapping[str, Any], folder: Path) -> None:
        from tokenizers import Tokenizer

        super().__init__()
        self.structure, self.network = dict(structure), network
        # set up once: transformers' own class sets it at every call, which threads that share it may not
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(structure["tokens"])
        self.tokenizer.enable_padding(pad_id=structure["padding"])
        self.adaptable = tuple(f"network.{name}" for name in adaptable(network))
        self.eval()

    def forward(self, texts: Tensor) -> Tensor:
        rows = texts.cpu().numpy()
        words = [row.tobytes().rstrip(b"\0").decode("utf-8", errors="ignore") for row in rows]
        found = self.tokenizer.encode_batch(words)
        numbers = torch.tensor([each.ids for each in found], dtype=torch.long, device=texts.device)
        present = torch.tensor([each.attention_mask for each in found], dtype=torch.long, device=texts.device)
        if not numbers.numel():
            return torch.zeros(len(texts), self.width, device=texts.device)
        tokens = self.network(input_ids=numbers, attention_mask=present).last_hidden_state
        kept = tokens * present[:, :, None]
        return kept.sum(dim=1) / present.sum(dim=1, keepdim=True).clamp(min=1)

    def example(self) -> Tensor:
        return example_texts(64, next(self.parameters()).device)

    def description(self) -> dict[str, Any]:
        return {**self.structure, "width": self.width, "adaptable": list(self.adaptable)}


def text_structure(network: nn.Module, source: Path, folder: Path) -> dict[str, Any]:
    """What `TextBackbone` needs besides the network; writes the tokenizer of `source` to `folder`.

    Raises:
        InputError: no tokenizer in `source`, or none that can be written as tokenizer.json.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as problem:
        raise InputError(
            f"foundation.source: {source} holds no tokenizer, tokenizer.json or the like ({one_line(problem)})"
        ) from None
    if not tokenizer.is_fast:
        raise InputError(f"foundation.source: the tokenizer in {source} cannot be written as tokenizer.json")
    written = tokenizer.backend_tokenizer
    written.no_padding()  # what a file says of these two is replaced by what is set here
    written.no_truncation()
    written.save(str(folder / "tokenizer.json"))
    config = config_of(network)
    limits = (TOKENS, tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", None))
    # a padded place is seen by nobody, so any number in the vocabulary does where the tokenizer has none for it
    padding = next((each for each in (tokenizer.pad_token_id, tokenizer.eos_token_id) if each is not None), 0)
    tokens = int(min(limit for limit in limits if limit))
    return {"kind": "hf", "modality": "text", "config": config, "tokens": tokens, "padding": padding}
