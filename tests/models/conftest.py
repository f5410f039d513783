"""Small transformers of four blocks of every kind as foundation models, made without any download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.adapted import Adapted
from models.backbones import OwnNetwork, untrained
from models.foundation import Backbone, Foundation, FoundationParameters
from randomness import generator

BLOCKS, WIDTH, CLASSES = 4, 16, 5
SENTENCES = ("a federation of learners", "memory", "", "learners of a memory of memory, of a federation")
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 60,
    "vocab_size": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def of_timm(name: str, size: int, folder: Path) -> Backbone:
    from models import released_timm

    options = {"img_size": size, "depth": BLOCKS, "embed_dim": WIDTH, "num_heads": 2}
    about = {"channels": 3, "size": size, "mean": [0.5] * 3, "std": [0.5] * 3}
    return released_timm.backbone({"kind": "timm", "name": name, "options": options, **about})


def of_torchvision(folder: Path) -> Backbone:
    """As `released_torchvision.backbone` makes it, which knows the large ones by name only."""
    from torchvision.models import VisionTransformer

    from models.released_images import ImageBackbone
    from models.released_torchvision import written_out
    from models.released_weights import Undrawn

    options = {"num_layers": BLOCKS, "num_heads": 2, "hidden_dim": WIDTH, "mlp_dim": 32}
    with Undrawn():
        network = written_out(VisionTransformer(image_size=16, patch_size=8, **options))
    network.heads = nn.Identity()
    adaptable = [name for name, each in network.named_modules() if name.endswith((".inputs", ".outputs"))]
    about = {"channels": 3, "size": 16, "mean": [0.5] * 3, "std": [0.5] * 3}
    return ImageBackbone(network, about, adaptable)


def of_images(folder: Path) -> Backbone:
    from models import released_hf

    network = released_hf.built_network({"model_type": "vit", "image_size": 32, "patch_size": 8, **SIZES})
    about = {"kind": "hf", "modality": "image", "config": released_hf.config_of(network), "channels": 3, "size": 32}
    return released_hf.HuggingFaceImages(network, about | {"mean": [0.5] * 3, "std": [0.5] * 3})


def of_texts(kind: str, folder: Path, **config) -> Backbone:
    """Tokens are the texts' bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from models import released_hf
    from models.released_texts import TextBackbone

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({each: number for number, each in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    network = released_hf.built_network({"model_type": kind, **SIZES, **config})
    about = {"kind": "hf", "modality": "text", "config": released_hf.config_of(network), "tokens": 24, "padding": 1}
    return TextBackbone(network, about, folder)


def of_ours(name: str, shape: tuple[int, ...], folder: Path, **options) -> Backbone:
    network = {"name": name, "width": WIDTH, "depth": BLOCKS, "heads": 2, **options}
    return untrained(FoundationParameters(network=network), shape)


TWO_KINDS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}  # of attention
DISTIL = {"dim": WIDTH, "n_layers": BLOCKS, "n_heads": 2, "hidden_dim": 32}
PRE_NORM: dict[str, Callable[[Path], Backbone]] = {
    "vit_tiny": lambda folder: of_ours("vit_tiny", (1, 8, 8), folder),
    "text_transformer": lambda folder: of_ours("text_transformer", (48,), folder, vocabulary=64, tokens=8),
    "timm": lambda folder: of_timm("test_vit", 32, folder),
    "timm_eva": lambda folder: of_timm("eva02_tiny_patch14_224", 28, folder),
    "torchvision": of_torchvision,
    "hf_vit": of_images,
    "gpt2": lambda folder: of_texts("gpt2", folder),
    "llama": lambda folder: of_texts("llama", folder, num_key_value_heads=1, attention_bias=True),
    "qwen2": lambda folder: of_texts("qwen2", folder, num_key_value_heads=1, **TWO_KINDS),
    "qwen3": lambda folder: of_texts("qwen3", folder, num_key_value_heads=1, head_dim=8, attention_bias=True),
    "bloom": lambda folder: of_texts("bloom", folder),  # its blocks return tuples
}
POST_NORM: dict[str, Callable[[Path], Backbone]] = {
    "bert": lambda folder: of_texts("bert", folder),
    "distilbert": lambda folder: of_texts("distilbert", folder, **DISTIL),
    "mpnet": lambda folder: of_texts("mpnet", folder),  # its blocks return tuples
}
OTHERS: dict[str, Callable[[Path], Backbone]] = {
    "mistral": lambda folder: of_texts("mistral", folder, num_key_value_heads=1),  # it has no biases
    "albert": lambda folder: of_texts("albert", folder, embedding_size=WIDTH),  # one block that is run four times
    "resnet18": lambda folder: untrained(FoundationParameters(network={"name": "resnet18", "width": 4}), (1, 8, 8)),
}


@dataclass
class Pretrained:
    """A foundation model with what is known of it."""

    name: str
    foundation: Foundation
    folder: Path  # holds its tokenizer, if it has one
    inputs: Tensor
    post_norm: bool
    features: Tensor = field(init=False)
    tensors: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        with torch.no_grad():
            self.features = self.foundation.features(self.inputs)
        self.tensors = {name: each.clone() for name, each in self.foundation.state_dict().items()}

    @property
    def backbone(self) -> Backbone:
        return self.foundation.backbone

    def adapted(self, part: str, seed: int = 0, **options) -> Adapted:
        return Adapted(self.foundation, CLASSES, part, seed, **options)

    def train(self, model: Adapted, steps: int = 6, rate: float = 0.01) -> list[float]:
        """Steps of AdamW on one batch; returns the loss before each."""
        labels, adam = torch.arange(len(self.inputs)) % CLASSES, torch.optim.AdamW(model.psi().values(), lr=rate)
        losses = []
        for _ in range(steps):
            loss = F.cross_entropy(model(self.inputs), labels)
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
        return losses

    def is_untouched(self) -> bool:
        now = self.foundation.state_dict()
        return now.keys() == self.tensors.keys() and all(torch.equal(now[name], self.tensors[name]) for name in now)


def drawn(backbone: Backbone) -> Backbone:
    """Gives every parameter values around those of a normalisation layer."""
    with torch.no_grad():
        for name, each in backbone.named_parameters():
            centre = 1.0 if each.ndim == 1 and name.endswith("weight") else 0.0
            each.copy_(centre + 0.1 * torch.randn(each.shape, generator=generator(0, name)))
    return backbone


def made(name: str, folder: Path) -> Pretrained:
    from models import released

    backbone = drawn((PRE_NORM | POST_NORM | OTHERS)[name](folder))
    example = backbone.example()
    if backbone.modality == "text":
        rows = [list(each.encode()[:48].ljust(48, b"\0")) for each in SENTENCES]
        inputs = torch.tensor(rows, dtype=torch.uint8)
    else:
        inputs = torch.rand(4, *example.shape[1:], generator=generator(0, "images")) * 2 - 1
    if not isinstance(backbone, OwnNetwork):
        released.probe(backbone, FoundationParameters(source="hf:here"), tuple(inputs.shape[1:]))
    foundation = Foundation(backbone, {"parity": 2})
    nn.init.normal_(foundation.general["parity"].weight, generator=generator(0, "parity"))
    nn.init.zeros_(foundation.general["parity"].bias)
    return Pretrained(name, foundation, folder, inputs, name not in PRE_NORM)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Several for networks as small as these wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Callable[[str], Pretrained]:
    known: dict[str, Pretrained] = {}

    def get(name: str) -> Pretrained:
        if name not in known:
            known[name] = made(name, tmp_path_factory.mktemp(name))
        return known[name]

    return get


@pytest.fixture(params=[*PRE_NORM, *POST_NORM])
def transformer(request, pretrained) -> Pretrained:
    """Each in turn, or those that a test names (indirect)."""
    return pretrained(request.param)
