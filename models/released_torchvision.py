"""Released image classifiers of torchvision as backbones."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errors import InputError, nearest

from .foundation import FoundationParameters
from .released_images import ImageBackbone, whole_patches
from .released_weights import BRING, TIMEOUT, Undrawn, fill, one_line, read
from .transformer import Attention


def structure_of(parameters: FoundationParameters) -> dict[str, Any]:
    """What `backbone` builds from; mean, standard deviation and size are those of the default weights."""
    from torchvision import models

    name = parameters.source.partition(":")[2]
    # the structure of these depends on where their weights come from, or on a version that a state dict alone lacks
    left_out = ("googlenet", "inception_v3", "mnasnet")
    known = {each for each in models.list_models(module=models) if not each.startswith(left_out)}
    if name not in known:
        raise InputError(
            f"foundation.source: torchvision has no image classifier '{name}' for this; {nearest(name, known)}"
        )
    stated = models.get_model_weights(name).DEFAULT.transforms()
    own = stated.crop_size[0]
    size = parameters.size or own
    options = {"image_size": size} if name.startswith("vit_") else {}
    about = {"size": size, "mean": list(stated.mean), "std": list(stated.std)}
    return {"kind": "torchvision", "name": name, "options": options, "channels": 3, **about}


class ReleasedAttention(Attention):
    """`models.transformer.Attention` as torchvision's ViT calls its nn.MultiheadAttention.

    That one takes fused kernels, and hands its weights over without calling its layers, past an adapter on them.
    """

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, need_weights: bool) -> tuple[Tensor, None]:
        return super().forward(queries), None


def written_out(network: nn.Module) -> nn.Module:
    """Puts a `ReleasedAttention` wherever `network` has an nn.MultiheadAttention; weights: see `renamed`."""
    found = [(name, each) for name, each in network.named_modules() if isinstance(each, nn.MultiheadAttention)]
    for name, each in found:
        network.set_submodule(name, ReleasedAttention(each.embed_dim, each.num_heads))
    return network


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of nn.MultiheadAttention by the names of `ReleasedAttention`; the same numbers in the same order."""
    names = {".in_proj_": ".inputs.", ".self_attention.out_proj.": ".self_attention.outputs."}
    found = {}
    for name, each in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = each
    return found


def backbone(structure: Mapping[str, Any]) -> ImageBackbone:
    from torchvision import models
    from torchvision.ops import MLP

    if "image_size" in structure["options"]:
        whole_patches(structure["size"], int(structure["name"].rpartition("_")[2]))
    with Undrawn():
        network = written_out(models.get_model(structure["name"], weights=None, **structure["options"]))
    head = head_of(network)
    network.set_submodule(head, nn.Identity())
    ends = (".self_attention.inputs", ".self_attention.outputs", ".to_qkv", ".merge")  # of ViT; of MaxViT
    linear = [name for name, each in network.named_modules() if isinstance(each, nn.Linear)]
    adaptable = [name for name in linear if name.endswith(ends)]
    if not adaptable:  # Swin's attention reads the weights of its layers without calling them: its MLPs instead
        adaptable = [name for name in linear if isinstance(network.get_submodule(name.rpartition(".")[0]), MLP)]
    return ImageBackbone(network, {**structure, "head": head}, adaptable)


def head_of(network: nn.Module) -> str:
    """The name of the layer that gives the logits: the last one with 1000 outputs (SqueezeNet's is a convolution)."""
    outputs = {
        name: getattr(each, "out_features", getattr(each, "out_channels", 0)) for name, each in network.named_modules()
    }
    return [name for name, count in outputs.items() if count == 1000][-1]


def fill_in(built: ImageBackbone, parameters: FoundationParameters, root: Path) -> None:
    """Fills a file's weights in, or torchvision's default ones; position embeddings are scaled to another size."""
    from torchvision import models

    name, origin = built.structure["name"], parameters.source
    if parameters.weights == "released":
        state = download(name)
    else:
        state, origin = read(root / parameters.weights), str(root / parameters.weights)
    if isinstance(built.network, models.VisionTransformer) and "encoder.pos_embedding" in state:
        network = built.network
        state = models.vision_transformer.interpolate_embeddings(network.image_size, network.patch_size, state)
    fill(built.network, renamed(state), [built.structure["head"]], origin)


def download(name: str) -> dict[str, Tensor]:
    """The default weights of a torchvision classifier, through torch.hub and its cache."""
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    try:
        if not (Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]).is_file():
            # torch.hub waits without a limit for a server that does not answer
            urllib.request.urlopen(urllib.request.Request(weights.url, method="HEAD"), timeout=TIMEOUT).close()
        with Undrawn():
            return models.get_model(name, weights=weights, progress=False).state_dict()
    except OSError as problem:
        raise InputError(
            f"foundation.weights: torchvision:{name} cannot be downloaded ({one_line(problem)}); {BRING}"
        ) from None
